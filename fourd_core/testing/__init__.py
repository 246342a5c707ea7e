"""Contract tests: what every component promises, ours and third parties'.

    from fourd_core.testing import check_component
    def test_contract():
        check_component("cues", Luminance)

Each check builds the class from `cls.example()` and raises an AssertionError with a sentence. A class may help with
    example()          a small Config
    example_spec()     heads and memories: the BackboneSpec they are built on (else `miniature.Patches.spec`)
    example_head(spec) memories: a head that they serve (else `miniature.Pixels`)
    example_system()   objectives and metrics: the System they work on (else `miniature.Miniature()`)
    example_data()     objectives and metrics: the Dataset they work on (else `miniature.Textures()`)
To keep discovery hermetic in a test, set the environment variable `FOURD_PLUGINS` to "" (or to the plugins wanted).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fourd_core import interfaces
from fourd_core.registry import INTERFACES
from fourd_core.testing.data import check_dataset, check_metric, check_objective
from fourd_core.testing.form import check_form, example_clip, expect
from fourd_core.testing.parts import check_backbone, check_cue, check_head, check_memory

__all__ = [
    "check_backbone",
    "check_component",
    "check_cue",
    "check_dataset",
    "check_form",
    "check_head",
    "check_memory",
    "check_metric",
    "check_objective",
    "example_clip",
]

CHECKS: dict[str, Callable[[Any], None]] = {
    "backbones": check_backbone,
    "cues": check_cue,
    "heads": check_head,
    "objectives": check_objective,
    "memories": check_memory,
    "datasets": check_dataset,
    "metrics": check_metric,
}


def check_component(kind: str, cls: type[Any]) -> None:
    """Everything that a component of this kind promises.

    Args:
        kind: "backbones", "cues", "heads", "objectives", "memories", "datasets" or "metrics".
    Raises:
        AssertionError: the first promise that is not kept, in a sentence.
    """
    interface = getattr(interfaces, INTERFACES[kind])
    expect(isinstance(cls, type) and issubclass(cls, interface), f"{cls!r} does not derive from {interface.__name__}")
    CHECKS[kind](cls)
