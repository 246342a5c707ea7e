"""The page on L4P: its Python runs, its commands and keys exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, write_video

from fourd_core.cli import _parser
from fourd_core.recipe import load_recipe

PAGE = (ROOT / "docs/l4p.md").read_text()


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    clip = "examples/bigbuckbunny.mp4"
    assert clip in block
    # The bundled clip would take a minute; a few frames of the same size say the same.
    scope: dict[str, Any] = {}
    exec(block.replace(clip, str(write_video(tmp_path / "clip.mp4", 6, (720, 1280)))), scope)
    assert scope["pred"].tracks.xyz.shape == (1, 6, 2, 3)
    assert scope["pred"].depth.shape == (1, 6, 1, 720, 1280)


def test_the_keys_of_the_queries(tmp_path: Path) -> None:
    (table,) = re.findall(r"```toml\n(\[queries\].*?)```", PAGE, re.DOTALL)
    path = tmp_path / "with.toml"
    path.write_text(f'extends = "{ROOT / "recipes/l4p_tiny.toml"}"\n{table}')
    queries = load_recipe(path).queries
    assert queries is not None
    assert queries.frames == (0, -1)


def test_the_commands_parse_and_their_keys_exist() -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    for line in filter(None, shell.splitlines()):
        words = shlex.split(line, comments=True)
        options = _parser(words[1:]).parse_args(words[1:])
        if words[1] == "run":
            load_recipe(ROOT / words[2], options.overrides)
