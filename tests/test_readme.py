"""The README's promises: its Python runs and prints what it says, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT

from fourd_core.cli import main

README = (ROOT / "README.md").read_text()
PAGES = [path for folder in ("", "docs", "benchmarks", "recipes", "plugins/*", "examples", "examples/third_party")
         for path in sorted(ROOT.glob(f"{folder}/*.md" if folder else "*.md"))]  # fmt: skip


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})
    promised = re.findall(r"print\(.*?\)  # (.*)", block)
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_of_the_table_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^\| `fourd (\w+)", README, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
