"""The command line. Nothing heavy is imported before a command needs it: `fourd --help`, `fourd list` stay instant."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fourd_core import __version__
from fourd_core.errors import FourdError

INTERRUPTED = 130
"""The shell's own code for a program stopped by Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake that was explained, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    threading.excepthook = _thread_failed
    options.command_line = [*_program(), *words]
    try:
        return int(options.action(options))
    except FourdError as error:
        sys.stderr.write(f"fourd: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nfourd: stopped\n")
        return INTERRUPTED
    except BrokenPipeError:  # `fourd list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _program() -> list[str]:
    """How a shell starts this program, for the command that goes on after an interruption."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "fourd_core"]
    if shutil.which("fourd"):
        return ["fourd"]
    return [sys.argv[0]] if Path(sys.argv[0]).name == "fourd" else [sys.executable, "-m", "fourd_core"]


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """One line where a logger's thread meets a full disk; anything else is a bug and shows its traceback."""
    if isinstance(failure.exc_value, OSError):
        sys.stderr.write(f"fourd: a background writer stopped: {failure.exc_value}\n")
    else:
        threading.__excepthook__(failure)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse; stages may also stand behind the options, where argparse alone does not look for them."""
    parser = _parser(words)
    options, rest = parser.parse_known_args(words)
    if rest and (not hasattr(options, "stages") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.stages += rest
    return options


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fourd", description="4D video perception: recipes of plugins on a small core."
    )
    parser.add_argument("--version", action="version", version=f"fourd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run a recipe's stages; in a folder where they were interrupted: go on")
    run.add_argument("recipe", metavar="RECIPE", help="a TOML file")
    run.add_argument("stages", nargs="*", metavar="STAGE", help="only these stages (all, in order, when none is named)")
    _add_set(run)
    run.add_argument("--out", type=Path, metavar="FOLDER", help="the run folder (default: a new one below runs/)")
    run.add_argument("--cluster", metavar="ADDRESS", help="compute cues on this dask scheduler, tcp://HOST:8786")

    check = _command(commands, "check", _check, "resolve and validate a recipe without running it")
    check.add_argument("recipe", metavar="RECIPE", help="a TOML file")
    _add_set(check)

    rerun = _command(commands, "rerun", _rerun, "repeat a run from its resolved recipe")
    rerun.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    rerun.add_argument("stages", nargs="*", metavar="STAGE", help="only these stages")
    rerun.add_argument("--out", type=Path, metavar="FOLDER", help="the new run folder (default: a new one below runs/)")

    report = _command(commands, "report", _report, "write a run's report page again")
    report.add_argument("folder", type=Path, metavar="RUN", help="a run folder")

    view = _command(commands, "view", _view, "write a 4D viewer page of a run: points, cameras and tracks over time")
    view.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    view.add_argument("--video", metavar="NAME", help="which video, where the run predicted several")
    view.add_argument("--frames", type=_count, default=64, metavar="N", help="at most N frames, evenly chosen (64)")
    view.add_argument("--out", type=Path, metavar="FILE", help="the page (default: NAME_4d.html beside the arrays)")
    view.add_argument("--open", action="store_true", help="show it in the browser")

    _add_weights(commands)
    _command(commands, "list", _list, "every component by kind, and broken plugins with the reason")
    _command(commands, "doctor", _doctor, "what this machine offers, and what to do about what it lacks")
    if (
        not words or words[0] not in commands.choices
    ):  # looking for plugins takes time, which `fourd list` need not wait
        _add_of_plugins(commands)
    return parser


def _command(commands: Any, name: str, action: Callable[[argparse.Namespace], int], text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(action=action)
    return command


def _count(word: str) -> int:
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
        help="override a key, for example --set data.video=my.mp4 (repeatable)",
    )  # fmt: skip


def _add_weights(commands: Any) -> None:
    text = "published weights: list, show, pull, verify, convert"
    weights = commands.add_parser("weights", help=text, description=text[0].upper() + text[1:] + ".")
    actions = weights.add_subparsers(required=True, metavar="ACTION", dest="weights_action")

    _command(actions, "list", _weights, "the weights that installed plugins know, their licences, and which are here")
    show = _command(actions, "show", _weights, "what is known of weights, or what a checkpoint file holds")
    show.add_argument("what", metavar="NAME_OR_FILE", help="a name of `fourd weights list`, or a checkpoint")

    pull = _command(actions, "pull", _weights, "fetch weights, or go on where that was interrupted; licence first")
    pull.add_argument("name", metavar="NAME", help="a name of `fourd weights list`")
    pull.add_argument("--from", dest="location", metavar="LOCATION", help="a path or URL instead of the published one")
    pull.add_argument("--sha256", metavar="HASH", help="what the file must have, where no SHA-256 is published")
    pull.add_argument("--yes", action="store_true", help="agree to a licence that rules commercial use out")

    verify = _command(actions, "verify", _weights, "read fetched weights again and compare their SHA-256")
    verify.add_argument("name", nargs="?", metavar="NAME", help="only these (default: all that are here)")

    convert = _command(actions, "convert", _weights, "translate a published checkpoint to safetensors with a manifest")
    convert.add_argument("name", metavar="NAME", help="what it is: a name of `fourd weights list`")
    convert.add_argument("file", metavar="FILE", help="a path, a URL, or weights:NAME once it is pulled")
    convert.add_argument("folder", type=Path, metavar="FOLDER", help="gets NAME.safetensors and manifest.json")


def _add_of_plugins(commands: Any) -> None:
    """Commands that plugins bring: entry points of the group `fourd.commands`, each the place of its module as text.

    The module has `SUMMARY`, `add_arguments(parser)` and `run(options) -> int`, and is imported when it is asked
    for. Heavy imports belong into `run`.
    """
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group="fourd.commands"), key=lambda entry: entry.name):
        if entry.name in commands.choices:  # the core's own, or another plugin's
            continue
        text = f"what {entry.dist.name if entry.dist else 'a plugin'} adds: `fourd {entry.name} --help`"
        command = commands.add_parser(entry.name, help=text, add_help=False, prefix_chars="\0")
        command.add_argument("words", nargs=argparse.REMAINDER)
        command.set_defaults(action=_of_plugin, entry=entry)


def _of_plugin(options: argparse.Namespace) -> int:
    try:
        module = options.entry.load()
    except Exception as error:
        from fourd_core.errors import PluginError

        raise PluginError(
            f"the command {options.entry.name} cannot be loaded from {options.entry.value} ({type(error).__name__}: "
            f"{error}); install its plugin again"
        ) from error
    parser = argparse.ArgumentParser(prog=f"fourd {options.entry.name}", description=module.SUMMARY)
    module.add_arguments(parser)
    parsed = parser.parse_args(options.words)
    return int(module.run(parsed))


def _new_folder(name: str) -> Path:
    """`runs/NAME`, or with the first free number behind it."""
    base, number = Path("runs") / name, 1
    folder = base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{name}-{number}")
    return folder


def _run(options: argparse.Namespace) -> int:
    import attrs

    from fourd_core.recipe import load_recipe
    from fourd_core.recipe.schema import ClusterConfig
    from fourd_core.run import run_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if options.cluster is not None:
        recipe = attrs.evolve(recipe, cluster=ClusterConfig(options.cluster))
    folder: Path = options.out or _new_folder(recipe.name)
    again = options.command_line if options.out else [*options.command_line, "--out", str(folder)]
    return _report_run(lambda: run_recipe(recipe, folder, options.stages, options.command_line), folder, again)


def _rerun(options: argparse.Namespace) -> int:
    from fourd_core.run import rerun

    folder: Path = options.out or _new_folder(options.folder.resolve().name)
    again = [*_program(), "rerun", str(options.folder), *options.stages, "--out", str(folder)]
    return _report_run(lambda: rerun(options.folder, folder, options.stages, options.command_line), folder, again)


def _report_run(action: Callable[[], object], folder: Path, again: Sequence[str]) -> int:
    """Run, and say where the report lies or how to go on."""
    from fourd_core.run_folder import Interrupted

    try:
        action()
    except Interrupted:
        sys.stderr.write(f"\nfourd: stopped; everything so far is in {folder}. To go on: {shlex.join(again)}\n")
        return INTERRUPTED
    sys.stdout.write(f"report: {folder / 'report.html'}\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from fourd_core.check import check_recipe
    from fourd_core.recipe import load_recipe

    check_recipe(load_recipe(options.recipe, options.overrides))
    return 0


def _report(options: argparse.Namespace) -> int:
    from fourd_core.errors import RunError
    from fourd_core.report.page import write_report

    if not (options.folder / "run.json").exists():
        raise RunError(f"{options.folder} is not a run folder: it has no run.json")
    sys.stdout.write(f"report: {write_report(options.folder)}\n")
    return 0


def _view(options: argparse.Namespace) -> int:
    from fourd_core.viewer.command import run_view

    return run_view(options.folder, options.video, options.frames, options.out, options.open)


def _weights(options: argparse.Namespace) -> int:
    from fourd_core.weights.commands import run_weights

    return run_weights(options)


def _list(options: argparse.Namespace) -> int:
    from fourd_core.listing import print_components

    return print_components()


def _doctor(options: argparse.Namespace) -> int:
    from fourd_core.doctor import run_doctor

    return run_doctor()


if __name__ == "__main__":
    sys.exit(main())
