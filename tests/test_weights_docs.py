"""docs/weights.md does what it says: its commands parse, its asset is one, its entry point names it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import attrs

from fourd_core.cli import _parse
from fourd_core.weights import WeightsAsset
from fourd_core.weights.assets import GROUP
from fourd_core.weights.commands import _ACTIONS

PAGE = (Path(__file__).parent.parent / "docs" / "weights.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_commands_are_all_there_and_parse() -> None:
    lines = [line.removeprefix("$ fourd ") for block in blocks("console") for line in block.splitlines()]
    actions = {_parse(shlex.split(line)).weights_action for line in lines}
    table = set(re.findall(r"^\| `(\w+)", PAGE, re.MULTILINE))
    assert actions == table == _ACTIONS.keys()


def test_the_example_of_a_plugin() -> None:
    (source,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(source, "docs/weights.md", "exec", dont_inherit=True), names)
    asset = names["ACME_SMALL"]
    assert isinstance(asset, WeightsAsset)
    assert {field.name for field in attrs.fields(WeightsAsset)} == set(re.findall(r"^    (\w+)=", source, re.MULTILINE))
    points = tomllib.loads(blocks("toml")[1])["project"]["entry-points"]
    assert points[GROUP] == {asset.name: "acme.weights:ACME_SMALL"}
