"""The attention function against its definition, and the choice of who computes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend

from fourd_core.errors import RunError
from fourd_core.kernels import attention as module
from fourd_core.kernels.attention import attention, check_backend, describe, why_not_xformers

needs_xformers = pytest.mark.skipif(bool(why_not_xformers()), reason=f"xformers: {why_not_xformers()}")


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.einsum("bhnm,bhme->bhne", (scale * torch.einsum("bhnd,bhmd->bhnm", q, k)).softmax(-1), v)


def random_qkv(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)
    q, k, v = (torch.randn(shape, generator=make, dtype=dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(("scale", "factor"), [(None, 4**-0.5), (0.3, 0.3)])
def test_equals_its_definition(scale: float | None, factor: float) -> None:
    q, k, v = random_qkv()
    torch.testing.assert_close(attention(q, k, v, scale), definition(q, k, v, factor), rtol=1e-12, atol=1e-12)


SIZES = st.integers(1, 9)


@given(b=st.sampled_from([1, 7]), h=st.integers(1, 3), n=SIZES, m=SIZES, d=SIZES)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_size_from_one_fused_projection(b: int, h: int, n: int, m: int, d: int) -> None:
    make = torch.Generator().manual_seed(0)
    fused = torch.randn(b, max(n, m), 3 * h * d, generator=make, dtype=torch.float64)
    q, k, v = fused.unflatten(-1, (3, h, d)).permute(2, 0, 3, 1, 4)  # strided views, as in a backbone
    q, k, v = q[:, :, :n], k[:, :, :m], v[:, :, :m]
    torch.testing.assert_close(attention(q, k, v), definition(q, k, v, d**-0.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_is_accurate_to_its_own_rounding(dtype: torch.dtype, error: float) -> None:
    """The sums are kept in float32: the error is the inputs' and the answer's rounding."""
    q, k, v = (x.to(dtype) for x in random_qkv())
    answer = attention(q, k, v)
    assert answer.dtype == dtype
    expected = definition(q.double(), k.double(), v.double(), 0.5)
    assert float((answer.double() - expected).norm() / expected.norm()) < error


def test_float32_stays_close() -> None:
    q, k, v = random_qkv(torch.float32)
    answer = attention(q, k, v)
    assert answer.dtype == torch.float32
    expected = definition(q.double(), k.double(), v.double(), 0.5).float()
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)


def test_gradients() -> None:
    inputs = [x[:1, :1].clone().requires_grad_() for x in random_qkv()]
    assert torch.autograd.gradcheck(attention, tuple(inputs))


def test_order_of_keys_does_not_matter() -> None:
    q, k, v = random_qkv()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(attention(q, k, v), attention(q, k[:, :, order], v[:, :, order]))


def test_runs_on_the_meta_device() -> None:
    q, k, v = (x.to("meta") for x in random_qkv())
    assert attention(q, k, v).shape == (2, 3, 5, 6)


Q, K, V = random_qkv()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((Q, K, V[:, :, :6]), r"got \(2, 3, 5, 4\), \(2, 3, 7, 4\) and \(2, 3, 6, 6\)"),
        ((Q, K[..., :3], V), r"got \(2, 3, 5, 4\), \(2, 3, 7, 3\) and"),
        ((Q[0], K[0], V[0]), "b h n d"),
        ((Q[:1], K, V), r"got \(1, 3, 5, 4\), \(2, 3, 7, 4\) and"),
        ((Q, K[:, :1], V), r"\(2, 1, 7, 4\) and"),
        ((Q, K, V[:1]), r"and \(1, 3, 7, 6\)"),
        ((Q, K, V, None, "flash"), "backend must be 'auto', 'sdpa' or 'xformers', got 'flash'"),
    ],
)
def test_mistakes_are_named(given: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attention(*given)


@pytest.mark.usefixtures("unchecked")
def test_a_backend_that_does_not_exist_is_refused_early() -> None:
    with pytest.raises(ValueError, match="backend must be 'auto', 'sdpa' or 'xformers', got 'flash'"):
        check_backend("flash", 64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ordered", [False, True])
def test_compiles_and_exports_whole(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(torch.float32)

    class Ours(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if not ordered:
                return attention.__wrapped__(q, k, v)
            with module.sdpa_kernel(module.ON_HOPPER, set_priority=True):
                return attention.__wrapped__(q, k, v)

    expected = attention(q, k, v)
    whole = torch.compile(Ours(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(q, k, v), expected)
    torch.testing.assert_close(torch.export.export(Ours(), (q, k, v)).module()(q, k, v), expected)


# Who computes it


class Watched(torch.Tensor):
    """A tensor that says it is on a GPU, and keeps the order in which torch tries its kernels."""

    is_cuda = True  # type: ignore[assignment]
    orders: ClassVar[list[list[int]]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            cls.orders.append(torch._C._get_sdp_priority_order())
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(("major", "more_keys", "ours"), [(8, 0, False), (9, 0, True), (10, 0, False), (9, 1, False)])
def test_the_order_of_kernels_is_ours_on_hopper_alone_and_for_many_keys(
    major: int, more_keys: int, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_KEYS", random_qkv()[1].shape[-2] + more_keys)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=0))
    monkeypatch.setattr(Watched, "orders", [])
    before = torch._C._get_sdp_priority_order()
    q, k, v = (x.as_subclass(Watched) for x in random_qkv())
    torch.testing.assert_close(attention(q, k, v).as_subclass(torch.Tensor), definition(*random_qkv(), 0.5))
    (order,) = Watched.orders
    assert (order[: len(module.ON_HOPPER)] == [int(kernel) for kernel in module.ON_HOPPER]) == ours
    assert torch._C._get_sdp_priority_order() == before


def test_torch_has_every_kernel_that_may_be_taken_on_hopper() -> None:
    """The last one can take any tensors, so that the order refuses nothing."""
    assert module.ON_HOPPER[0] == SDPBackend.CUDNN_ATTENTION and module.ON_HOPPER[-1] == SDPBackend.MATH
    q, k, v = random_qkv()
    with module.sdpa_kernel(module.ON_HOPPER, set_priority=True):
        torch.testing.assert_close(attention(q, k, v), definition(q, k, v, 0.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_xformers_on_a_cpu_is_refused_with_a_sentence() -> None:
    q, k, v = random_qkv()
    sentence = 'attention = "xformers" cannot be used here: there is no CUDA device; set attention = "auto"'
    with pytest.raises(RunError) as refused:
        attention(q, k, v, backend="xformers")
    assert str(refused.value) == sentence
    with pytest.raises(ValueError) as refused_early:
        check_backend("xformers", 64)
    assert str(refused_early.value) == sentence
    check_backend("auto", 3)
    check_backend("sdpa", 3)
    assert attention(*(x.to("meta") for x in (q, k, v)), backend="xformers").shape == (2, 3, 5, 6)
    assert torch.equal(attention(q, k, v, backend="sdpa"), attention(q, k, v, backend="auto"))


def test_nothing_imports_xformers_where_there_is_no_cuda() -> None:
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False\n"
        "from fourd_core.kernels.attention import *\n"
        "attention(*torch.randn(3, 1, 1, 2, 4)); describe()\n"
        "try: check_backend('xformers', 8)\n"
        "except ValueError: print(*(name for name in sys.modules if name.startswith('xformers')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


def test_a_library_that_does_not_load_is_explained_and_does_not_complain_itself() -> None:
    """As on a machine with CUDA and a torch that it was not built for: here the whole of it is missing."""
    pytest.importorskip("xformers", reason="xformers is not installed (it exists for Linux only)", exc_type=ImportError)
    if torch.version.cuda is not None:
        pytest.skip("here the library may load")
    code = "from fourd_core.kernels import attention; print(attention._imported())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert "(None, 'its library does not load beside torch" in result.stdout
    assert "libcudart.so.12" in result.stdout and "pip install nvidia-cuda-runtime-cu12" in result.stdout


def test_the_runtime_that_xformers_needs_is_found_where_pip_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "nvidia_cuda_runtime_cu12-12.8.90.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cuda-runtime-cu12\nVersion: 12.8.90\n")
    assert module._cuda_runtime() is None
    library = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    assert module._cuda_runtime() == library


class Here(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine on which xformers works, of capability 8.0; what is handed to its operator is kept."""
    seen: list[Any] = []

    def memory_efficient_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> Any:
        seen.append((q, k, v, scale))
        answer = definition(*(x.transpose(1, 2) for x in (q, k, v)), q.shape[-1] ** -0.5 if scale is None else scale)
        return answer.transpose(1, 2).contiguous()

    operators = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setattr(module, "_xformers", lambda: (operators, ""))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=8, minor=0))
    return seen


def on_gpu(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    fused = torch.randn(2, 5, 9 * width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = fused.unflatten(-1, (3, 3, width)).permute(2, 0, 3, 1, 4)
    return q.as_subclass(Here), k.as_subclass(Here), v.as_subclass(Here)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_xformers_gets_its_own_layout_without_a_copy(usable: list[Any], scale: float | None) -> None:
    q, k, v = on_gpu(8)
    answer = attention(q, k, v, scale, "xformers")
    torch.testing.assert_close(answer, attention(q, k, v, scale, "sdpa"), rtol=1e-12, atol=1e-12)
    ((*given, its_scale),) = usable
    assert its_scale == scale
    for ours, theirs in zip((q, k, v), given, strict=True):
        assert theirs.shape == (2, 5, 3, 8) and theirs.stride(-1) == 1
        assert theirs.data_ptr() == ours.data_ptr() and theirs.stride() == (5 * 72, 72, 8, 1)
    assert answer.transpose(1, 2).is_contiguous()  # so that joining the heads copies nothing


def test_what_xformers_cannot_take_is_refused(usable: list[Any]) -> None:
    check_backend("xformers", 88)
    with pytest.raises(ValueError, match=r"heads of a multiple of 8 channels, and these have 20; set attention"):
        check_backend("xformers", 20)
    with pytest.raises(RunError, match="multiple of 8 channels, and these have 4"):
        attention(*on_gpu(4), backend="xformers")
    with pytest.raises(RunError, match="it needs CUDA tensors, and these are on cpu"):
        attention(*random_qkv(), backend="xformers")
    assert not usable


def test_what_xformers_has_no_operator_for_is_refused_in_one_sentence(
    usable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*inputs: torch.Tensor, scale: float | None) -> torch.Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:\n     query")

    operators = SimpleNamespace(memory_efficient_attention=refuses)
    monkeypatch.setattr(module, "_xformers", lambda: (operators, ""))
    with pytest.raises(RunError, match=r'no operator .* 8 channels in torch\.float64 .* attention = "auto"$'):
        attention(*on_gpu(8), backend="xformers")


def test_auto_takes_xformers_where_the_table_says_so_and_nowhere_else(
    usable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    attention(*on_gpu(8))
    assert not usable  # the table is empty
    monkeypatch.setattr(module, "FASTER_BY_XFORMERS", frozenset({((8, 0), 8, torch.float64)}))
    attention(*on_gpu(16))
    attention(*on_gpu(8), backend="sdpa")
    attention(*(x.float() for x in on_gpu(8)))
    assert not usable
    attention(*on_gpu(8))
    assert len(usable) == 1
    attention(*random_qkv())  # on a CPU
    monkeypatch.setattr(module, "_xformers", lambda: (None, "it is not installed"))
    torch.testing.assert_close(attention(*on_gpu(8)), attention(*on_gpu(8), backend="sdpa"))
    assert len(usable) == 1


def test_one_line_for_the_doctor(usable: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: "0.0.35")
    assert describe().endswith('xformers 0.0.35 where a recipe says attention = "xformers"')
    monkeypatch.setattr(module, "_xformers", lambda: (None, "it is not installed (pip install xformers)"))
    assert describe().endswith("xformers is not used: it is not installed (pip install xformers)")


@needs_xformers
def test_both_backends_agree_on_the_gpu() -> None:
    q, k, v = (x.float().contiguous().cuda().requires_grad_() for x in on_gpu(88))
    ours, theirs = (attention(q, k, v, backend=name) for name in ("sdpa", "xformers"))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    for mine, other in zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-4)
