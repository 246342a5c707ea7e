"""The networks of a system by torch.compile, for windows of one size.

What is compiled are the modules that a backbone or a head is made of, one by one: these take and give tensors, while
the backbone or the head itself exchanges records (`Tokens`, `Maps`) that torch.compile cannot make. Modules stay in
their places and parameters keep their names: for a while only `forward` is another one. A head that tracks stays as it
is, since the number of its points changes, and so do memories.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Head
from fourd_core.jobs.stopping import stopping_at_once
from fourd_core.system import System

Compile = Literal["no", "default", "graphs"]
"""As recipes write it: not at all; by torch.compile; and replayed as CUDA graphs besides."""

BACKEND: str | Callable[..., Any] = "inductor"
"""What torch.compile hands its graphs to; tests take one that does not need half a minute."""

FORMS = 8
"""Of a module's inputs, how many are compiled at most; torch takes further ones as they are."""

PLAIN = (int, float, str, type(None), torch.dtype, torch.device)
"""What two inputs of one form have in common besides their tensors' shapes."""


def check_compile(how: Compile, device: torch.device, stage: str) -> None:
    """Find what cannot work before anything is written.

    Raises:
        RecipeError: CUDA graphs on another device; no C++ compiler.
    """
    if how == "graphs" and device.type != "cuda":
        raise RecipeError(
            f'[stages.{stage}] compile = "graphs" replays CUDA graphs, and this runs on {device.type}; set compile = '
            '"default" or "no"'
        )
    compilers = os.environ.get("CXX", ""), "g++", "clang++"
    if how != "no" and not any(map(shutil.which, compilers)):
        raise RecipeError(
            f'[stages.{stage}] compile = "{how}" needs a C++ compiler, and there is none (looked for $CXX, g++ and '
            'clang++); install one, or set compile = "no"'
        )


@contextmanager
def compiled(system: System, how: Compile) -> Iterator[None]:
    """Within it, backbone and heads run compiled for inputs of a form that they have seen before.

    So what is seen once, as a video's last window often is, makes nobody wait; and networks fill their tables before
    they are compiled.

    Raises:
        RunError: torch.compile cannot, for want of a C++ compiler for example.
    """
    if how == "no":
        yield
        return
    parts: dict[str, nn.Module] = {"backbone": system.backbone}
    parts |= {f"heads.{name}": head for name, head in system.heads.items() if not cast(Head, head).tracks}
    modules = [(name, module) for name, part in parts.items() for module in part.children()]
    announce = _Note()
    for name, module in modules:
        vars(module)["forward"] = _Forward(name, module.forward, how, announce)
    try:
        # torch counts the forms of a piece of code, and modules of one class share theirs.
        with torch._dynamo.config.patch(recompile_limit=FORMS * len(modules)):
            yield
    finally:
        for _, module in modules:
            del vars(module)["forward"]


class _Note:
    """Says once that compiling has begun: nothing else tells for minutes why windows wait."""

    def __init__(self) -> None:
        self.said = False

    def __call__(self) -> None:
        if not self.said:
            self.said = True
            sys.stderr.write(
                "note: compiling the networks for windows of this size, which takes a minute or more and pays for long "
                "videos only\n"
            )
            sys.stderr.flush()


class _Forward:
    """A module's `forward`, compiled for each form of its inputs when that comes a second time.

    Args:
        announce: called before something is compiled.
    """

    def __init__(
        self, name: str, forward: Callable[..., Any], how: Compile, announce: Callable[[], None] = lambda: None
    ) -> None:
        mode = "reduce-overhead" if how == "graphs" else None
        self._name, self._how, self._plain = name, how, forward
        self._compiled = torch.compile(forward, mode=mode, dynamic=False, backend=BACKEND)
        self._announce = announce
        self._seen: set[Hashable] = set()
        self._made: set[Hashable] = set()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        form = _form((inputs, options))
        if form not in self._seen:
            self._seen.add(form)
            return self._plain(*inputs, **options)
        if self._how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            if form in self._made:
                answer = self._compiled(*inputs, **options)
            else:
                self._announce()
                # A window can be left at any time: it is done anew. Otherwise Ctrl-C would be heard only after it.
                with stopping_at_once():
                    answer = self._compiled(*inputs, **options)
                self._made.add(form)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())  # then follow pieces of code
            raise RunError(
                f'compile = "{self._how}": torch.compile fails at [{self._name}] ({reason}); set compile = "no"'
            ) from error
        return self._copied(answer) if self._how == "graphs" else answer

    def _copied(self, answer: Any) -> Any:
        """A copy: the next replay writes over what the last one gave, and windows are joined later than that."""
        for leaf in tree_leaves(answer):
            if not isinstance(leaf, (Tensor, *PLAIN)):
                raise RunError(
                    f'compile = "graphs": [{self._name}] answers with a {type(leaf).__name__}, whose tensors cannot be '
                    'copied before they are overwritten; set compile = "default"'
                )
        return tree_map_only(Tensor, torch.clone, answer)


def _form(value: Any) -> Hashable:
    """All of an input but the numbers in its tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, _form(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_form(item) for item in value)
    # Of anything else its kind: kept as it is, a record would keep its tensors from being freed.
    return cast(Hashable, value if isinstance(value, PLAIN) else type(value))
