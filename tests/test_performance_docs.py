"""docs/performance.md: its Python runs, and its table names the operations that have a kernel."""

from __future__ import annotations

import re
from importlib import import_module

from helpers import ROOT

from fourd_core.kernels.triton.compiled import MODULES

PAGE = (ROOT / "docs/performance.md").read_text()


def test_the_page_s_python_runs() -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    found: dict[str, object] = {}
    exec(source, found)
    assert tuple(found["xy"].shape) == (8, 16, 2)  # type: ignore[attr-defined]


def test_every_operation_of_the_table_is_there() -> None:
    rows = re.findall(r"^\| (`\w+\.\w+`[^|]*) \| ", PAGE, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    # `solve_ridge` and `propagate` stand behind a name with its module.
    module = ""
    for name in names:
        module, _, function = name.rpartition(".") if "." in name else (module, "", name)
        assert callable(getattr(import_module(f"fourd_core.kernels.{module}"), function))
    assert len(rows) == len(MODULES)
