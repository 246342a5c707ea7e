"""fourd: 4D video perception. A small core that knows no model; plugins and recipes do.

`fourd_core.load(recipe)` builds a system; everything else is imported from its own module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from fourd_core.build import load


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `fourd list`, `--help` and the recipe's form must not pay for it.
    if name == "load":
        from fourd_core.build import load

        return load
    raise AttributeError(f"module 'fourd_core' has no attribute '{name}'")
