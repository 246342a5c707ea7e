"""Heads that ask for it have their maps upsampled in context wherever a prediction reaches the video's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Fourd
from jaxtyping import UInt8
from torch import Tensor
from upsampling_heads import FEATURES, SCENE, Low, LowFeatures, LowMoving, Orange, install

from fourd_core import load
from fourd_core.data import Predictions
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Head, Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.video import open_video
from fourd_core.media.views import TiledView, View, center, exact, original
from fourd_core.sinks import ArraySink, MemorySink
from fourd_core.streaming import Finished, StreamConfig, stream
from fourd_core.system import System
from fourd_core.tiles import Shot
from fourd_core.upsampling.streaming import Upsampler, _Held

SHARP = ("heads.depth.upsample=in_context", "heads.flow.upsample=in_context", "heads.moving.upsample=in_context")
EDGES = torch.nn.functional.max_pool2d(
    (SCENE.depth[:, None] - torch.nn.functional.avg_pool2d(SCENE.depth[:, None], 3, 1, 1)).abs(), 5, 1, 2
)[:, 0].gt(0.15)  # fmt: skip
"""Pixels near a step of the scene's depth."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def arrays(folder: Path) -> dict[str, Tensor]:
    store = ArrayStore(folder / "predict/scene.zarr")
    return {name: torch.from_numpy(np.asarray(store[name][:])) for name in store}


def error(found: Tensor, truth: Tensor, where: Tensor) -> float:
    """Mean relative error of maps `t 1 h w`, where both are known."""
    known = where & found[:, 0].isfinite()
    assert known.sum() > 0.9 * where.sum()
    return float(((found[:, 0] - truth).abs() / truth)[known].mean())


def test_edges_are_sharper_and_off_changes_no_bit(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "--out", "plain", check=0)
    fourd("run", recipe, "--out", "sharp", *words(*SHARP), check=0)
    plain, sharp = arrays(tmp_path / "plain"), arrays(tmp_path / "sharp")
    # Without the wish it is the core's own stream.
    system = load(recipe)
    video = open_video(str(tmp_path / "scene"))
    view = exact((72, 96), (24, 32))
    bilinear = collected(stream(system, video, view, StreamConfig(4, 2)), view)
    for name, maps in plain.items():
        assert torch.equal(maps.nan_to_num(-1), bilinear[name].nan_to_num(-1)), name
    assert error(sharp["depth"], SCENE.depth, EDGES) < 0.5 * error(plain["depth"], SCENE.depth, EDGES)
    assert error(sharp["depth"], SCENE.depth, ~EDGES) < 0.02
    for name, truth in {"moving": SCENE.on_box[:, None] * 0.9 + 0.05, "flow": SCENE.flow()}.items():
        ours, theirs = ((maps[name] - truth).abs()[1:][EDGES[1:, None].expand_as(truth[1:])] for maps in (sharp, plain))
        assert ours.nanmean() < 0.7 * theirs.nanmean(), name
    for name, maps in plain.items():  # what was unknown is unknown: a hole of the head, the first frame's flow
        assert torch.equal(maps.isnan(), sharp[name].isnan()), name
    assert plain["depth"].isnan().any() and plain["flow"][0].isnan().all()


def test_a_killed_run_ends_with_the_same_bits(
    fourd: Fourd, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = f"heads.depth.upsample_features={tmp_path / 'features.toml'}"
    fourd("run", recipe, "--out", "whole", *words(*SHARP, features), check=0)
    put, left = ArraySink.put, [3]

    def killed(sink: ArraySink, part: Finished) -> Predictions:
        if not left[0]:
            raise SystemError
        left[0] -= 1
        return put(sink, part)

    monkeypatch.setattr(ArraySink, "put", killed)
    with pytest.raises(SystemError):
        fourd("run", recipe, "--out", "again", *words(*SHARP, features))
    assert (tmp_path / "again/predict/scene.position.pt").exists()
    monkeypatch.setattr(ArraySink, "put", put)
    fourd("run", recipe, "--out", "again", *words(*SHARP, features), check=0)
    whole, again = arrays(tmp_path / "whole"), arrays(tmp_path / "again")
    for name, maps in whole.items():
        assert torch.equal(maps.nan_to_num(-1), again[name].nan_to_num(-1)), name


def collected(parts: object, view: View) -> dict[str, Tensor]:
    """What a memory sink makes of finished parts: maps `t c h w` by head."""
    sink = MemorySink(view, "video", SCENE.frame_count, 2**30)
    for part in parts:  # type: ignore[attr-defined]
        sink.put(part)
    return {name: item.values[0] for name, item in Predictions(sink.whole).items()}  # type: ignore[attr-defined]


class Counted(Video):
    """The scene at 25 frames a second; which frames are read is noted."""

    def __init__(self) -> None:
        self.name, self.frame_count, self.size = "scene", SCENE.frame_count, SCENE.size
        self.reads: list[int] = []

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        self.reads += indices
        return SCENE.read(indices)

    def times(self, indices: Sequence[int]) -> Tensor:
        return torch.as_tensor(list(indices), dtype=torch.float64) / 25


def system(recipe: Path, **heads: Head) -> System:
    """The recipe's backbone with other heads."""
    return System(load(recipe).backbone, heads)


def wishing(cls: type[Low], backbone: System, how: str = "in_context", **keys: object) -> Head:
    return cls(cls.Config(upsample=how, **keys), backbone.backbone.spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "view",
    [
        center((72, 96), 24, (8, 8)),
        center((72, 96), 24, (8, 8), height=32, width=40),
        View((72, 96), (36, 40), (40, 40)),  # filled up below
        View((72, 96), (36, 40), (32, 32), (8, 12)),  # a corner, filled up on two sides
        TiledView((72, 96), (40, 56), (40, 56), tile=(24, 32)),
    ],
    ids=["center", "smaller", "filled", "corner", "tiles"],
)
def test_any_view(recipe: Path, view: View) -> None:
    """A part of the frame, with bilinear's own border, and tiles."""
    whole = load(recipe)
    answers = []
    for how in ("bilinear", "in_context"):
        toy = system(recipe, moving=wishing(Orange, whole, how))
        answers.append(collected(Upsampler(toy).stream(Counted(), view, StreamConfig(4, 2)), view)["moving"])
    plain, sharp = answers
    assert torch.equal(plain.isnan(), sharp.isnan())
    assert (plain.isnan().any()) == (view.corner != (0, 0))
    truth = SCENE.on_box[:, None] * 0.9 + 0.05
    assert (sharp - truth).abs().nanmean() < 0.6 * (plain - truth).abs().nanmean()


def test_a_view_as_fine_as_the_video_stays_as_it_is(recipe: Path) -> None:
    toy = system(recipe, moving=wishing(LowMoving, load(recipe)))
    view = original((72, 96), (8, 8))
    found = collected(Upsampler(toy).stream(Counted(), view, StreamConfig(4, 2)), view)["moving"]
    assert torch.equal(found, (SCENE.on_box[:, None] * 0.9 + 0.05))


def test_every_frame_is_read_once_and_none_is_kept(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = Counted()
    toy = system(recipe, moving=wishing(LowMoving, load(recipe)))
    held: list[int] = []
    take = _Held.take

    def watched(self: _Held, first: int, count: int) -> list[Shot]:
        held.append(len(self._frames))
        return take(self, first, count)

    monkeypatch.setattr(_Held, "take", watched)
    view = exact((72, 96), (24, 32))
    collected(Upsampler(toy).stream(video, view, StreamConfig(4, 2)), view)
    assert video.reads == list(range(10))
    assert max(held) <= 4


def test_whose_features_count(recipe: Path, tmp_path: Path) -> None:
    """Another system's by name, else the system's own, else colours: three answers, of which the first is the best."""
    whole = load(recipe)
    view = exact((72, 96), (24, 32))
    truth = SCENE.on_box[:, None] * 0.9 + 0.05

    def found(head: Head, **others: Head) -> Tensor:
        toy = system(recipe, moving=head, **others)
        return collected(Upsampler(toy).stream(Counted(), view, StreamConfig(4, 2)), view)["moving"]

    named = found(wishing(LowMoving, whole, upsample_features=str(tmp_path / "features.toml")))
    own = found(wishing(LowMoving, whole), points=LowFeatures(LowFeatures.Config(), whole.backbone.spec))
    colours = found(wishing(LowMoving, whole))
    errors = [float((maps - truth).abs().mean()) for maps in (named, own, colours)]
    assert len(set(errors)) == 3
    assert errors[0] < 0.9 * min(errors[1:])


def test_mistakes_are_found_before_the_run(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    def said(*settings: str) -> str:
        answer = fourd("run", recipe, *words("heads.depth.upsample=in_context", *settings), "--out", "no", check=2)
        assert not (tmp_path / "no").exists()
        return " ".join(answer.stderr.split())

    name = "heads.depth.upsample_features"
    assert (
        f"[heads.depth] upsample_features: {recipe} has no head that predicts features (it has: depth, flow, moving); "
        "name a recipe or run folder that has one"
    ) in said(f"{name}={recipe}")
    assert '[heads.depth] upsample = "in_context" is for the pixels of the video' in said("stages.predict.pixels=view")
    assert "[heads.depth] upsample_features: " in said(f"{name}={tmp_path / 'missing.toml'}")
    features = tmp_path / "features.toml"
    features.write_text(features.read_text().replace("pixels = 72", 'view = "resize"\nheight = 30\nwidth = 30'))
    assert "[heads.depth] upsample_features: [data] view: height x width must be multiples of" in said(
        f"{name}={features}"
    )


def test_features_of_several_frames_are_refused(recipe: Path, tmp_path: Path) -> None:
    pairs = "{ embed_dim = 24, depth = 1, heads = 2, patch = [2, 8, 8], mlp_ratio = 2 }"
    features = tmp_path / "features.toml"
    features.write_text(FEATURES.replace('"toy_patches"', f'"videomae"\nsize = {pairs}'))
    toy = system(recipe, moving=wishing(LowMoving, load(recipe), upsample_features=str(features)))
    with pytest.raises(RecipeError, match=r"\[heads.moving\] .*features.toml sees 2 frames at a time; name a"):
        Upsampler(toy)
