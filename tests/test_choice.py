"""Which form of an operation runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fourd_core.kernels.choice import by_triton, using
from fourd_core.rewrites import Rewrite

CPU = torch.zeros(1)


def test_the_interpreter_is_never_chosen_by_itself() -> None:
    assert not by_triton(CPU)
    with using("plain"):
        assert not by_triton(CPU)


def test_what_is_asked_for_holds_within_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with using("triton"):
        assert by_triton(CPU, None)
        with using("plain"):
            assert not by_triton(CPU)
        assert by_triton(CPU)
    assert not by_triton(CPU)


def test_triton_on_the_cpu_without_its_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with using("triton"), pytest.raises(RuntimeError, match="triton"):
        by_triton(CPU)


def test_on_one_gpu_triton_is_chosen_and_between_two_of_them_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    generation = {"major": 8}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**generation))
    with FakeTensorMode():  # tensors without numbers, on GPUs that need not be there
        here, there = (torch.empty(1, device=f"cuda:{number}") for number in range(2))
        exact = torch.empty(1, device="cuda:0", dtype=torch.float64)
    assert by_triton(here, None, here)
    assert not by_triton(here, there)
    assert not by_triton(here, CPU)
    assert not by_triton(here, exact)
    with using("triton"):
        assert by_triton(here, exact)
    generation["major"] = 7
    assert not by_triton(here)


def test_a_rewrite_is_on_but_within_off() -> None:
    rewrite = Rewrite("of this test", saves="nothing")
    try:
        with rewrite.off():
            assert not rewrite.on
            with rewrite.off():
                assert not rewrite.on
            assert not rewrite.on
        assert rewrite.on
        assert Rewrite.known["of this test"] is rewrite
    finally:
        del Rewrite.known["of this test"]
