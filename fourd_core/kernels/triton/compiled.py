"""What the shipped kernels become on a Hopper GPU, compiled without one: python -m fourd_core.kernels.triton.compiled

One line of JSON per kernel: registers of a thread (of at most 255), bytes of stack (registers that did not fit: none is
best), bytes of shared memory (of at most SHARED_LIMIT).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

MODULES = ("ridge", "gradient_matching", "map_readout", "local_affinity")
SHARED_LIMIT = 232448
"""Bytes of shared memory that a program may take on Hopper (227 KiB)."""


@attrs.frozen
class Shipped:
    """A kernel as it is launched at sizes that recipes use."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    """Types of the arguments that are no constants: "*fp32" for a pointer, "i32", "fp32"."""
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: Sequence[str] = ()
    """Integers that are divisible by 16; pointers always are."""


def shipped() -> Iterator[Shipped]:
    """All kernels' configurations: every module of kernels lists its own."""
    for name in MODULES:
        yield from import_module(f"fourd_core.kernels.triton.{name}").shipped()


def compiled(item: Shipped, capability: int = 90) -> dict[str, Any]:
    """Registers, stack and shared memory of a kernel on a GPU of this compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = item.kernel.arg_names
    signature = {name: "constexpr" if name in item.constants else item.signature[name] for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or (name in item.divisible and name not in item.constants)
    }
    source = ASTSource(fn=item.kernel, signature=signature, constexprs=dict(item.constants), attrs=aligned)
    options = {"num_warps": item.num_warps, "num_stages": item.num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return {"registers": int(found[1]), "stack": int(found[2]), "shared": result.metadata.shared}


def main() -> None:
    """Compile all, or those whose names contain the first argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="a part of the names of those to compile; all by default")
    wanted = parser.parse_args().name
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as it is by default, said so that Triton does not warn
    chosen = [item for item in shipped() if wanted in item.name]
    if not chosen:
        parser.error(f"no kernel's name contains '{wanted}'; there are: {'; '.join(sorted(i.name for i in shipped()))}")
    for item in chosen:
        sys.stdout.write(json.dumps({"name": item.name, **compiled(item)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
