"""Hooks: documented exactly, called with what they ask for, and unable to harm a run."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from fourd_core import hooks, registry
from fourd_core.errors import PluginError
from fourd_core.hooks import Hooks, hookimpl, load_hooks

DOCS = Path(__file__).parent.parent / "docs" / "hooks.md"


class Listener:
    """Writes down what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def fourd_stage_started(self, stage: str) -> None:
        self.heard.append(("stage", stage))

    @hookimpl
    def fourd_step_finished(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        self.heard.append((stage, step, metrics["loss"]))


class Failing:
    """Raises at every step."""

    @hookimpl(tryfirst=True)
    def fourd_step_finished(self, step: int) -> None:
        raise OSError(f"step {step}: no space")


def specifications() -> dict[str, str]:
    functions = {n: f for n, f in vars(hooks).items() if n.startswith("fourd_") and inspect.isfunction(f)}
    return {name: f"{name}{inspect.signature(function)}".replace("'", "") for name, function in functions.items()}


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    written = re.findall(r"^```python\n(fourd_\w+\(.*)\n```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert written == list(specifications().values())
    assert len(written) == 7


def test_example_of_the_page_works(tmp_path: Path) -> None:
    from types import SimpleNamespace

    code = re.search(r"^```python\n(# acme_progress.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert code is not None
    namespace: dict[str, Any] = {}
    exec(code[1], namespace)
    calls = Hooks()
    calls.register(namespace["LastStep"](), "last_step")
    calls.step_finished(run=SimpleNamespace(folder=tmp_path), stage="train", step=12, metrics={})
    assert (tmp_path / "last_step.txt").read_text() == "12\n"


def test_implementations_get_the_arguments_they_ask_for() -> None:
    calls, listener = Hooks(), Listener()
    calls.register(listener, "listener")
    calls.stage_started(run=None, stage="train")
    calls.step_finished(run=None, stage="train", step=3, metrics={"loss": 0.5})
    calls.run_finished(run=None, status="done")  # nobody listens
    assert listener.heard == [("stage", "train"), ("train", 3, 0.5)]


def test_a_failing_hook_is_reported_once_and_the_others_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    calls, listener = Hooks(), Listener()
    calls.register(listener, "listener")
    calls.register(Failing(), "acme:failing")
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            calls.step_finished(run=None, stage="train", step=step, metrics={"loss": 1.0})
    assert [step for _, step, _ in listener.heard] == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "acme:failing failed in fourd_step_finished: OSError: step 0: no space; the run goes on without it"
    ]


def test_ctrl_c_inside_a_hook_stops_the_run() -> None:
    class Interrupting:
        @hookimpl
        def fourd_run_started(self) -> None:
            raise KeyboardInterrupt

    calls = Hooks()
    calls.register(Interrupting(), "interrupting")
    with pytest.raises(KeyboardInterrupt):
        calls.run_started(run=None)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [("fourd_step_finsihed", "self", "unknown hook"), ("fourd_run_started", "self, runs", "runs")],
)
def test_a_hook_that_does_not_exist_is_refused(name: str, arguments: str, reason: str) -> None:
    namespace: dict[str, Any] = {"hookimpl": hookimpl}
    exec(f"class Wrong:\n    @hookimpl\n    def {name}({arguments}): pass", namespace)
    calls, listener = Hooks(), Listener()
    with pytest.raises(PluginError, match=f"(?s)wrong.*{reason}"):
        calls.register(namespace["Wrong"](), "wrong")
    calls.register(listener, "listener")  # the refusal left nothing behind
    calls.stage_started(run=None, stage="train")
    assert listener.heard == [("stage", "train")]


def test_wrappers_are_refused() -> None:
    class Wrapping:
        @hookimpl(wrapper=True)
        def fourd_run_started(self) -> Any:
            return (yield)

    with pytest.raises(PluginError, match="only listened to"):
        Hooks().register(Wrapping(), "wrapping")


def test_an_event_that_does_not_exist_is_the_callers_mistake() -> None:
    with pytest.raises(AttributeError):
        Hooks().no_such_event(run=None)


GOOD = """
from fourd_core.hooks import hookimpl

class Good:
    made = 0
    def __init__(self): Good.made += 1
    @hookimpl
    def fourd_run_finished(self, status): Good.status = status
"""


def test_installed_hooks_are_loaded_each_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = tmp_path / "acme_hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-hooks\nVersion: 1.0\n")
    lines = ["good = acme_good:Good", "bad = acme_bad:Bad", "gone = acme_good:Gone"]
    (info / "entry_points.txt").write_text(
        "\n".join(["[fourd.plugin]", "api.1 = acme_good", "[fourd.hooks]", *lines]) + "\n"
    )
    (tmp_path / "acme_good.py").write_text(GOOD)
    (tmp_path / "acme_bad.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FOURD_PLUGINS", "acme-hooks")
    with caplog.at_level(logging.WARNING):
        calls = load_hooks()
        load_hooks()
    calls.run_finished(run=None, status="done")
    import acme_good

    assert acme_good.Good.status == "done"
    assert acme_good.Good.made == 2  # one for each run
    said = caplog.text
    assert '"acme-hooks:bad" in hooks (acme-hooks 1.0) cannot be imported: SystemExit: 3' in said
    assert '"acme-hooks:gone" in hooks (acme-hooks 1.0) cannot be imported: AttributeError' in said

    monkeypatch.setenv("FOURD_PLUGINS", "")
    assert load_hooks().manager.get_plugins() == set()
    assert registry.records("hooks") == []
