"""Commands that plugins bring: found by their entry point, imported when they are asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import command_parts
import pytest
from helpers import Fourd

from fourd_core.cli import main


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin with the command `greet`."""
    folder = tmp_path / "site"
    folder.mkdir()
    command_parts.install(folder)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("greet")
def test_a_command_takes_its_own_words(fourd: Fourd) -> None:
    assert fourd("greet", "Ann", "Bo", "--times", "2", check=0).stdout == "hello Ann and Bo\n" * 2
    assert fourd("greet", "--times=1", "Ann", "--code", 3, check=3).stdout == "hello Ann\n"


@pytest.mark.usefixtures("greet")
def test_its_mistakes_are_explained_as_the_others(fourd: Fourd, capfd: pytest.CaptureFixture[str]) -> None:
    answer = fourd("greet", "Nobody", check=2)
    assert answer.stderr == "fourd: Nobody is not a person; name one\n"
    for words in (["greet"], ["greet", "Ann", "--tiems", "2"], ["greet", "Ann", "--times", "often"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert "usage: fourd greet" in capfd.readouterr().err


@pytest.mark.usefixtures("greet")
def test_the_help_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    for words, says in ((["--help"], "command-parts"), (["greet", "--help"], command_parts.SUMMARY)):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        out = capfd.readouterr().out
        assert "greet" in out and says in out


@pytest.mark.usefixtures("greet")
def test_nothing_is_imported_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "command_parts")
    for words in (["--help"], ["list", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "command_parts" not in sys.modules
    assert "greet" not in capfd.readouterr().out.splitlines()[0], "a command of the core does not look for plugins"
    main(["greet", "Ann"])
    assert "command_parts" in sys.modules


def test_a_name_that_is_taken_and_a_plugin_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fourd: Fourd, capfd: pytest.CaptureFixture[str]
) -> None:
    """The core's own command stays; what cannot be imported is one sentence, and only for who asks for it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    command_parts.install(folder, "[fourd.commands]\nlist = command_parts\nshattered = no_such_module_at_all\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "every component by kind" in capfd.readouterr().out
    answer = fourd("shattered", "--any", check=2)
    assert answer.stderr.startswith("fourd: the command shattered cannot be loaded from no_such_module_at_all (Module")


def test_a_word_that_is_no_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["greet", "Ann"])
    assert stopped.value.code == 2
    assert "invalid choice: 'greet'" in capfd.readouterr().err
