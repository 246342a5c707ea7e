"""Life-cycle events of a run, for loggers, exporters and schedulers that live outside of the core.

The functions below are pluggy hook specifications of the project `fourd`. An implementation is a module or a class
with functions of these names marked by `hookimpl`, registered as an entry point in the group `fourd.hooks`; it takes
those of the arguments that it wants. A class is instantiated without arguments, once for each run. Whatever a hook
raises is reported once and the run goes on. `docs/hooks.md` describes each hook with an example.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from fourd_core import registry
from fourd_core.errors import PluginError

if TYPE_CHECKING:
    from fourd_core.data import Predictions
    from fourd_core.run_folder import Run

hookspec = pluggy.HookspecMarker("fourd")
hookimpl = pluggy.HookimplMarker("fourd")
"""Marks an implementation: `from fourd_core.hooks import hookimpl`."""

_log = logging.getLogger(__name__)


@hookspec
def fourd_run_started(run: Run) -> None:
    """A run begins, or goes on where it was interrupted; its folder holds the recipe and `run.json`."""


@hookspec
def fourd_stage_started(run: Run, stage: str) -> None:
    """A stage of the recipe begins or goes on."""


@hookspec
def fourd_step_finished(run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """A training step was logged: losses, learning rate and whatever the objective reports, by name."""


@hookspec
def fourd_window_finished(
    run: Run, stage: str, video: str, first_frame: int, last_frame: int, predictions: Predictions
) -> None:
    """Predictions of a video's frames `first_frame .. last_frame` (both included) are final."""


@hookspec
def fourd_checkpoint_saved(run: Run, stage: str, step: int, path: Path) -> None:
    """The state after `step` steps lies whole at `path`."""


@hookspec
def fourd_stage_finished(run: Run, stage: str) -> None:
    """A stage ended well."""


@hookspec
def fourd_run_finished(run: Run, status: str) -> None:
    """A run ended: `status` is "done", "interrupted" (resumable) or "failed"."""


class Hooks:
    """Calls the implementations of an event; `hooks.step_finished(run=..., ...)` calls `fourd_step_finished`.

    Attributes:
        manager: pluggy's own, with everything that was registered.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("fourd")
        self.manager.add_hookspecs(sys.modules[__name__])

    def __getattr__(self, event: str) -> Callable[..., list[Any]]:
        if event == "manager" or event.startswith("_"):
            raise AttributeError(event)
        call: Callable[..., list[Any]] = getattr(self.manager.hook, f"fourd_{event}")
        return call

    def register(self, plugin: object, name: str) -> None:
        """Add an implementation whose failures will not reach the run.

        Args:
            plugin: a module or an object with marked functions.
            name: what to call it when it fails.
        Raises:
            PluginError: it implements a hook that does not exist, or with arguments that the hook does not have.
        """
        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()
            for caller in self.manager.get_hookcallers(plugin) or ():
                for implementation in caller.get_hookimpls():
                    if implementation.plugin is plugin:
                        _guard(implementation, name, caller.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            raise PluginError(f"hooks of {name}: {error}") from error


def _guard(implementation: pluggy.HookImpl, plugin: str, hook: str) -> None:
    """Keep an implementation's failures away from the run and from the other implementations."""
    if implementation.wrapper or implementation.hookwrapper:
        raise ValueError(f"{hook} is a wrapper; events are only listened to")
    function = implementation.function
    said: list[Exception] = []

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if not said:
                said.append(error)
                _log.warning(
                    "%s failed in %s: %s: %s; the run goes on without it", plugin, hook, type(error).__name__, error
                )
            return None

    implementation.function = guarded  # type: ignore[misc] # pluggy calls what stands here


def load_hooks() -> Hooks:
    """All implementations that are installed and selected; a broken one is a warning, not an error."""
    hooks = Hooks()
    for record in registry.records(registry.HOOKS):
        try:
            implementation: Any = registry.load(registry.HOOKS, f"{record.distribution}:{record.name}")
            hooks.register(_instance(implementation), record.full_name)
        except PluginError as error:
            _log.warning("%s; the run goes on without it", error)
    return hooks


def _instance(implementation: Any) -> object:
    """A fresh object of a class, so that each run has a state of its own; a module as it is.

    Raises:
        PluginError: the class cannot be made without arguments.
    """
    if not isinstance(implementation, type):
        return implementation
    try:
        return implementation()
    except Exception as error:
        raise PluginError(f"hooks class {implementation.__qualname__} raises when it is made: {error}") from error
