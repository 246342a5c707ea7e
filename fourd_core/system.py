"""A composed model: one backbone, named heads and their memories, the cues that teach them.

`fourd_core.build` makes it from a recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import attrs
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from fourd_core.checkpoint import below
from fourd_core.data import Clip, Prediction, Predictions, Tokens
from fourd_core.errors import RecipeError, RunError, WeightsError
from fourd_core.interfaces import Backbone, Component, CueProvider, Head, Memory, State
from fourd_core.media.views import ViewConfig
from fourd_core.stitching import wanted_frames
from fourd_core.tracking import track
from fourd_core.weights import describe_checkpoint, load_weights, sha256_of
from fourd_core.weights.cache import shown

if TYPE_CHECKING:
    from fourd_core.recipe import Recipe

States = dict[str, State]
"""The memories' states between two windows, by head name."""


QueryPoints = Iterable[Iterable[float]] | Tensor | SupportsIndex | None


class NamedModules(nn.ModuleDict):
    """A ModuleDict whose keys may be any word: a stage may be called "train", which is also a method of modules."""

    def __init__(self, section: str, modules: Mapping[str, nn.Module] | None = None) -> None:
        """`section`: of the recipe, for the message about a name that is not there."""
        super().__init__()
        self.section = section
        self.update(modules or {})

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module

    def __getitem__(self, key: str) -> nn.Module:
        if key not in self._modules:
            raise _no_such(self.section, key, self._modules)
        return super().__getitem__(key)


def _taps(head: nn.Module) -> tuple[int, ...]:
    return cast(Head, head).taps


class NamedCues(dict[str, CueProvider]):
    """Cues by name, with a sentence about a name that is not there."""

    def __missing__(self, key: str) -> CueProvider:
        raise _no_such("cues", key, self)


def _no_such(section: str, key: str, known: Iterable[str]) -> RecipeError:
    return RecipeError(f"the recipe has no [{section}.{key}]; it has: {', '.join(known) or 'none'}")


class System(nn.Module):
    """Backbone, heads and memories with one forward for a window of frames.

    Attributes:
        backbone: the encoder; in evaluation mode and without gradient, unless `learn_backbone` says otherwise.
        own_backbone: whether training changed the backbone, which is then a part of `trained_state`.
        heads: by name.
        memories: by the name of the head they serve.
        cues: teachers by name; used by objectives, not by `forward`. Their weights are read at their first call or by
            `load_cues`: a system that only predicts needs none.
        objectives: by the name of their training stage; they may own trained parameters.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, Head],
        memories: Mapping[str, Memory] | None = None,
        cues: Mapping[str, CueProvider] | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.heads = NamedModules("heads", heads)
        self.memories = NamedModules("memories", memories)
        self.cues = NamedCues(cues or {})
        self._learned_cues = nn.ModuleList(c for c in self.cues.values() if isinstance(c, nn.Module))
        self._learned_cues.requires_grad_(False)
        self.unread_cues: dict[str, CueProvider] = {}
        self.objectives = NamedModules("stages")
        self.recipe = recipe
        self.starts_fresh = False
        self.own_backbone = False
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def taps(self) -> tuple[int, ...]:
        """The backbone layers that some head reads."""
        return tuple(sorted({tap for head in self.heads.values() for tap in _taps(head)}))

    def load_cues(self) -> None:
        """Read the weights of the teachers that have some and were not called yet.

        Raises:
            WeightsError: missing, or not theirs.
        """
        unread, self.unread_cues = self.unread_cues, {}
        load_pretrained({f"cues.{name}": cue for name, cue in unread.items()})

    def read_cues_when_called(self) -> None:
        """Put off the reading of the teachers' weights, which are large, until a teacher is called."""
        for name, cue in self.cues.items():
            if isinstance(cue, nn.Module) and cue.pretrained() is not None:
                self.unread_cues[name] = cue
                cue.register_forward_pre_hook(lambda *_: self.load_cues())
            else:
                load_pretrained({f"cues.{name}": cue})

    def learn_backbone(self, blocks: int) -> None:
        """Say how much of the backbone learns: its last `blocks` blocks and what follows them; all (-1); none (0).

        Raises:
            ValueError: it has fewer blocks, or cannot be trained in part.
        """
        self.backbone.requires_grad_(blocks < 0)
        for module in self.backbone.last_blocks(blocks) if blocks > 0 else ():
            module.requires_grad_(True)
        self.own_backbone = self.own_backbone or blocks != 0

    @property
    def backbone_learns(self) -> bool:
        """Whether some of the backbone learns."""
        return any(parameter.requires_grad for parameter in self.backbone.parameters())

    def train(self, mode: bool = True) -> System:
        """Switch heads, memories and objectives; a frozen backbone and the teachers stay in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.backbone_learns)
        self._learned_cues.train(False)
        return self

    def encode(
        self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int] = (), heads: Collection[str] | None = None
    ) -> Tokens:
        """Tokens of the layers that the heads (or some of them) read and of `taps` besides.

        Without gradient where the backbone is frozen.
        """
        read = {tap for name, head in self.heads.items() if heads is None or name in heads for tap in _taps(head)}
        wanted = sorted({*read, *(self.backbone.spec.tap(tap) for tap in taps)})
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_learns):
            tokens: Tokens = self.backbone(frames, wanted)
        return tokens

    def forward(self, clip: Clip) -> Predictions:
        """Every head's prediction for one window that stands alone."""
        return self.step(clip, {}, shift=None)[0]

    def step(
        self, clip: Clip, states: States, shift: int | None, heads: Sequence[str] | None = None
    ) -> tuple[Predictions, States]:
        """One window of a longer video.

        Without gradient, a head without a memory is asked only about the frames that its stitch reads
        (`Clip.wanted`).

        Args:
            clip: the window's frames; the frames of its queries count from its first.
            states: what the memories kept from the window before; empty for the first.
            shift: how many frames later the next window starts; None: there is none.
            heads: only these.
        Returns:
            predictions, and the memories' states for the next window.
        """
        chosen = {name: cast(Head, self.heads[name]) for name in (self.heads if heads is None else heads)}
        tokens = self.encode(clip.frames, heads=chosen)
        predictions: dict[str, Prediction] = {}
        kept: States = {}
        wanted: dict[str, int] = {}
        if shift is not None and not torch.is_grad_enabled():
            wanted = wanted_frames({name: head.stitch for name, head in chosen.items()}, clip.frames.shape[1], shift)
        for name, head in chosen.items():
            memory = cast(Memory, self.memories[name]) if name in self.memories else None
            if head.tracks:
                predictions[name], kept[name] = track(name, head, memory, tokens, clip, states.get(name, []), shift)
                continue
            seen = tokens, clip if memory is not None else attrs.evolve(clip, wanted=wanted.get(name))
            if memory is not None:
                state = states[name] if name in states else memory.initial(tokens, clip)
                seen = memory.read(state, tokens, clip)
            predictions[name] = head(*seen)
            if memory is not None and shift is not None:
                kept[name] = memory.update(state, tokens, clip, predictions[name], shift)
        return Predictions(predictions), kept

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes or owns: heads, memories, objectives, and the backbone once training has touched it."""
        parts = ("heads.", "memories.", "objectives.", *(["backbone."] if self.own_backbone else []))
        return {key: value for key, value in self.state_dict().items() if key.startswith(parts)}

    def load_trained_state(self, state: Mapping[str, Tensor], location: str) -> None:
        """The inverse of `trained_state`; parameters of objectives that this system lacks are left aside.

        Raises:
            WeightsError: not this system's weights.
        """
        if backbone := below("backbone.", state):
            load_weights(self.backbone, backbone, location=location)
            self.own_backbone = True
        load_weights(self.heads, below("heads.", state), location=location)
        load_weights(self.memories, below("memories.", state), location=location)
        for stage, objective in self.objectives.items():
            own = below(f"objectives.{stage}.", state)
            if own:  # weights of one training stage lack what another one's objective owns
                load_weights(objective, own, location=location)

    def load_parts(self, state: Mapping[str, Tensor], location: str) -> list[str]:
        """Give the backbone, each head and each memory what a file of weights has for it.

        A part is given whole, or, where it has pretrained weights of its own, laid over these. Other parts of the file
        are left aside, and so is what the file has nothing for.

        Returns:
            the parts with parameters that the file has nothing for, as sections of the recipe.
        Raises:
            WeightsError: a part does not fit, or the file has nothing for any of them.
        """
        parts: dict[str, nn.Module] = {"backbone": self.backbone}
        parts |= {f"heads.{name}": head for name, head in self.heads.items()}
        parts |= {f"memories.{name}": memory for name, memory in self.memories.items()}
        given = {name: below(f"{name}.", state) for name in parts}
        if not any(given.values()):
            raise WeightsError(
                f"{shown(location)} has nothing for this recipe: {describe_checkpoint(state)}, and its tensors must be "
                f"named after the recipe's parts ({', '.join(parts)}), as in the weights that a training stage leaves"
            )
        for name, own in given.items():
            aside = getattr(parts[name], "leaves_aside", ())
            own = {key: value for key, value in own.items() if not key.startswith(aside)}
            if own:
                has_others = cast(Component, parts[name]).pretrained() is not None
                lacks = own.keys() < parts[name].state_dict().keys()
                advice = f"The file has only a part of [{name}]: give that section weights of its own too"
                load_weights(
                    parts[name], own, location=location,
                    optional=[""] if has_others else [], advice=advice if lacks else "",
                )  # fmt: skip
        return [name for name, part in parts.items() if not given[name] and part.state_dict()]

    def untrained(self) -> System:
        """The same composition with all that learns as training found it: fresh, or with the recipe's weights."""
        if self.recipe is None:
            raise RunError("a system that was not built from a recipe does not know how it was initialised")
        from fourd_core.build import untrained

        return untrained(self, self.recipe)

    def predict(
        self, video: str | Path | Tensor | NDArray[Any], queries: QueryPoints = None, limit_gb: float = 8.0
    ) -> Predictions:
        """Every head's prediction for every frame of a video or picture, in memory: `1 t ...`.

        Maps are in the pixels of the input, or on the grid of the network's view where the recipe's predict stage has
        `pixels = "view"`; a picture is a video of one frame.

        View and window are those of the recipe. For long videos run its predict stage by `fourd run`, which writes to
        disk as it goes.

        Args:
            video: a file, a URL, a folder of frames or a glob of pictures; or the frames themselves, of which 8 bits a
                channel are kept: a torch tensor `t 3 h w` (`3 h w` for one), uint8 or floating in [0, 1], or a NumPy
                array `t h w 3` (`h w 3`), uint8. Pictures and frames have the frame rate of the recipe's data.
            queries: points for heads that track: rows of (frame, x, y) in the video's pixels, or an integer n for a
                grid of n x n in the first frame; by default those of the recipe's `[queries]`.
            limit_gb: how much memory the predictions may take.
        Raises:
            MediaError: the video cannot be read, or frames have another shape, type or range.
            RecipeError: a query lies outside the video, nobody named any, no head tracks the given ones, or the windows
                do not suit a head or a memory.
            RunError: the predictions would not fit into `limit_gb`.
        """
        from fourd_core.media.video import open_given
        from fourd_core.progress import track
        from fourd_core.queries import queries_for, queries_from
        from fourd_core.sinks import MemorySink
        from fourd_core.streaming import check_windows, stream, stream_config, view_of, window_count

        if queries is not None and not any(cast(Head, head).tracks for head in self.heads.values()):
            raise RecipeError(
                f"queries: no head of this recipe tracks points (it has: {', '.join(self.heads)}); leave queries "
                "out, or add a head that does"
            )
        rule = self.recipe.data.config if self.recipe is not None else None
        source = open_given(video, getattr(rule, "frame_rate", 25.0))
        self.eval()
        config = stream_config(self.recipe)
        source.intrinsics = getattr(rule, "pinhole", None)
        check_windows(self, source, config)
        view = view_of(rule if isinstance(rule, ViewConfig) else ViewConfig(), source.size, self.backbone.spec)
        if queries is None:
            points = queries_for(self.recipe.queries if self.recipe is not None else None, source, view)
        else:
            points = queries_from(queries, source, view)
        sink = MemorySink(view, config.pixels, source.frame_count, round(limit_gb * 2**30))
        total = window_count(self, source.frame_count, config)
        for part in track(stream(self, source, view, config, points), "predict", total):
            sink.put(part)
        return Predictions(sink.whole)


def load_pretrained(components: Mapping[str, Component]) -> None:
    """Give each component its own pretrained weights, unless it is only a shape.

    Args:
        components: by their sections of the recipe.
    Raises:
        WeightsError: missing, not the published file, or not theirs.
    """
    for where, component in components.items():
        if isinstance(component, nn.Module) and any(p.is_meta for p in component.parameters()):
            continue
        weights = component.pretrained()
        if weights is not None and weights.sha256 is not None and sha256_of(weights.location) != weights.sha256:
            raise WeightsError(
                f"[{where}] {shown(weights.location)} is not the published file: its SHA-256 is not {weights.sha256}; "
                "install or fetch it again"
            )
        component.load_pretrained()
