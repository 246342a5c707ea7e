"""The exceptions that a user may see.

Each message is one sentence or a short list that says what was wrong, where (file, key, frame) and what to do.
The command line prints the message alone and exits with code 2; programmers' mistakes stay `assert`s and tracebacks.
"""

from __future__ import annotations

from collections.abc import Sequence


class FourdError(Exception):
    """Base of everything that is the input's, the recipe's or the machine's fault, not the program's."""


class RecipeError(FourdError):
    """A recipe cannot be read or does not fit the schema; lists every mistake that was found."""


class PluginError(FourdError):
    """A component is unknown, ambiguous, broken, or written for another API version."""


class MediaError(FourdError):
    """A video, picture or array cannot be read or written."""


class WeightsError(FourdError):
    """A checkpoint is missing, unsafe, damaged, or made for another network."""


class NotFetchedError(WeightsError):
    """Published weights are known and not here yet."""


class RunError(FourdError):
    """A run cannot start or go on: its folder, the disk, the numbers."""


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first of many names and how many more there are, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
