"""The kernels compile for a Hopper GPU, without one: they fit its shared memory and spill no registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fourd_core.kernels.triton.compiled import MODULES, SHARED_LIMIT


def test_every_shipped_kernel_fits() -> None:
    pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fourd_core.kernels.triton.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"].replace(",", "").split()[0] for kernel in found} == set(MODULES)
    for kernel in found:
        assert kernel["shared"] <= SHARED_LIMIT, kernel
        assert kernel["stack"] == 0, kernel
