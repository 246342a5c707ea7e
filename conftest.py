"""Under test the annotations of the core and of the plugins are checked at run time: shapes, dtypes, plain types.

jaxtyping's import hook puts the checks into every function (within one call, an axis name stands for one size), and
beartype reads the annotations. What breaks one is a `jaxtyping.TypeCheckError` that names the function and the
argument. Users run without the checks; so do the processes that a test starts, and tests with the fixture `unchecked`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import attrs
import jaxtyping
import pytest
import torch

# Of a list beartype reads one item, drawn at random: by a generator of its own, for tests compare the global one.
with patch("random.getrandbits", random.Random(0).getrandbits):
    import beartype  # noqa: F401

# Triton decides at its import whether kernels are compiled for a GPU or interpreted. The processes of tests inherit it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parent
# Recipes and reports hold no tensors, and their tests would take five times as long.
CORE = {path.stem for path in (ROOT / "fourd_core").iterdir()} - {"recipe", "report"}
PLUGINS = {path.parent.name for path in ROOT.glob("plugins/*/fourd_*/__init__.py")}
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int may stand for a float

_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_with_attrs(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the hook decorates functions and classes with, taught to check what an attrs class is made of."""
    check = _jaxtyped(typechecker=typechecker)

    def decorate(thing: Any) -> Any:
        if isinstance(thing, type) and "__attrs_attrs__" in vars(thing):
            hints = get_type_hints(thing, include_extras=True)
            # Read here: attrs leaves them as strings, which mean nothing where its `__init__` is defined.
            thing.__init__.__annotations__ = {f.alias: hints[f.name] for f in attrs.fields(thing) if not f.converter}
            thing.__init__ = check(thing.__init__)
        return check(thing)

    return decorate


jaxtyping.jaxtyped = _jaxtyped_with_attrs
jaxtyping.install_import_hook([*(f"fourd_core.{name}" for name in CORE), *PLUGINS], CHECKER)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run: a wrong argument reaches the code, and the code says what is wrong."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
