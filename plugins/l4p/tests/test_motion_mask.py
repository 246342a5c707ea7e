"""The objective `motion_mask`: masks lie on the frames they belong to, the loss is what it says, refusals explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import torch
from fourd_dpt3d.dense3d import Depth3D, Motion3D
from fourd_l4p import motion
from fourd_l4p.motion import MotionMask, intersection_over_union, seen_masks
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.data import Clip
from fourd_core.errors import FourdError, MediaError, RecipeError
from fourd_core.media.dataset import VideoFiles
from fourd_core.media.video import open_video
from fourd_core.media.views import View, center
from fourd_core.media.writers import write_png
from fourd_core.recipe import Location
from fourd_core.streaming import view_of
from fourd_core.system import System
from fourd_core.testing import miniature


def blocks(frames: int, size: tuple[int, int] = (48, 80)) -> Tensor:
    """A white block on black that moves four pixels to the right in each frame."""
    video = torch.zeros(frames, 3, *size, dtype=torch.uint8)
    for t in range(frames):
        video[t, :, 10:32, 4 * t : 4 * t + 14] = 255
    return video


def pictures(folder: Path, frames: Tensor) -> Location:
    """The folder, with the frames in it."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        write_png(folder / f"{number:03}.png", frame)
    return Location(str(folder))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def system() -> System:
    return MotionMask.example_system()


def objective(masks: Location, **keys: object) -> MotionMask:
    return MotionMask(MotionMask.Config(masks, **keys), system())  # type: ignore[arg-type]


def dataset(video: Location | None, **keys: object) -> VideoFiles:
    return VideoFiles(VideoFiles.Config(video=video, **{"pixels": 32, **keys}))  # type: ignore[arg-type]


VIEWS: Sequence[tuple[dict[str, object], tuple[int, int]]] = (
    ({"view": "short_side"}, (32, 56)),
    ({"view": "center"}, (32, 32)),
    ({"view": "resize", "height": 24, "width": 40}, (24, 40)),
    ({"view": "tiles", "pixels": 24, "tile_side": 40}, (24, 24)),  # the whole, as large as a tile
    ({"view": "original"}, (48, 80)),
)


@pytest.mark.parametrize(("view", "size"), VIEWS, ids=[str(view["view"]) for view, _ in VIEWS])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_masks_lie_on_their_frames(tmp_path: Path, view: dict[str, object], size: tuple[int, int], split: str) -> None:
    """White blocks are their own masks: what is bright is what moves, in every view, window and part of the video.

    The held-out part has three frames, fewer than a window.
    """
    video = pictures(tmp_path / "video", blocks(16))
    data = dataset(video, held_out=0.2, gap=2, **view)
    learn = objective(video)
    for seed in range(3):
        sample = learn.sample(data, split, generator(seed))  # type: ignore[arg-type]
        assert sample["frames"].shape == (4, 3, *size)
        assert torch.equal(sample["moving"], sample["frames"][:, 0] > 0.5)
        assert 0.02 < sample["moving"].float().mean() < 0.5


def test_every_window_of_a_part_is_drawn_and_no_other(tmp_path: Path) -> None:
    """The number of a frame is its brightness: train has frames 0 to 6, held out are 9 to 11."""
    numbered = torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 48, 64)
    video = pictures(tmp_path / "video", numbered)
    data, learn = dataset(video, held_out=0.25, gap=2), objective(video)

    def seen(split: str) -> set[tuple[int, ...]]:
        drawn = (learn.sample(data, split, generator(seed))["frames"] for seed in range(60))  # type: ignore[arg-type]
        return {tuple((frames[:, 0, 0, 0] * 255).round().int().tolist()) for frames in drawn}

    assert seen("train") == {(first, first + 1, first + 2, first + 3) for first in range(4)}
    assert seen("held_out") == {(9, 10, 11, 10)}  # shorter than a window: it goes back and forth


def test_masks_of_another_size_and_colour(tmp_path: Path) -> None:
    """Half the rows and columns, and red: the blocks' edges lie on even pixels, so both sizes say the same."""
    video = pictures(tmp_path / "video", blocks(6))
    small = blocks(6)[..., ::2, ::2] // 255 * torch.tensor([128, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    data = dataset(video, view="original")
    own, other = (objective(at).sample(data, "train", generator()) for at in (video, pictures(tmp_path / "s", small)))
    assert own["moving"].any()
    assert torch.equal(own["moving"], other["moving"])


def test_a_mask_at_half_the_size_by_hand(tmp_path: Path) -> None:
    """A pixel of the view moves where most of what it covers does; 127 is not white, 128 is."""
    mask = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    mask[0, 1, :2, :2], mask[0, 1, 0, 4], mask[0, 1, 2:, 6:] = 128, 255, 127
    video = open_video(pictures(tmp_path / "masks", mask))
    half = seen_masks(video, [0], View((4, 8), resized=(2, 4), size=(2, 4)))
    assert half.tolist() == [[[True, False, False, False], [False] * 4]]
    ring = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    ring[..., 1:3, 1:3] = 0  # all that a quarter's middle shows, but not most of the quarter
    rings = open_video(pictures(tmp_path / "rings", ring))
    assert seen_masks(rings, [0], View((8, 8), resized=(2, 2), size=(2, 2))).all()
    cut = seen_masks(video, [0], center((4, 8), 4))
    assert cut.tolist() == [[[False, False, True, False]] + [[False] * 4] * 3]


def test_intersection_over_union_by_hand() -> None:
    one = torch.tensor([True, True, False, False])
    assert intersection_over_union(one, torch.tensor([True, False, True, False])) == pytest.approx(1 / 3)
    assert intersection_over_union(one, ~one) == 0
    assert intersection_over_union(one & ~one, one & ~one) == 1


def test_the_loss_is_the_cross_entropy_of_what_the_system_predicts(tmp_path: Path) -> None:
    video = pictures(tmp_path / "video", blocks(12))
    data, learn, whole = dataset(video), objective(video), system()
    samples = [learn.sample(data, "train", generator(seed)) for seed in range(2)]
    batch = default_collate(samples)
    with torch.no_grad():
        losses = learn(whole, batch, generator())
        single = [learn(whole, default_collate([sample]), generator())["loss"] for sample in samples]
        probability = whole(Clip(batch["frames"]))["motion"].values[:, :, 0].double()
    moving = batch["moving"]
    wanted = -torch.where(moving, probability, 1 - probability).log().mean()
    assert float(losses["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(sum(single)) / 2, rel=1e-5)
    assert float(losses["iou"]) == pytest.approx(float(intersection_over_union(probability > 0.5, moving)))
    assert math.isfinite(losses["loss"])


def test_several_videos_each_with_its_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one's block is darker: its mask still lies on it. All are looked at once, then the drawn one alone."""
    looked: list[tuple[int, int]] = []
    monkeypatch.setattr(motion, "view_of", lambda rule, size, spec: looked.append(size) or view_of(rule, size, spec))
    for name, brightness in (("a", 255), ("b", 200)):
        pictures(tmp_path / name / "frames", blocks(8) // 255 * brightness)
        pictures(tmp_path / name / "masks", blocks(8))
    data = dataset(Location(str(tmp_path / "*/frames")), view="original")
    learn = objective(Location(str(tmp_path / "*/masks")))
    found = set()
    for seed in range(8):
        sample = learn.sample(data, "train", generator(seed))
        assert torch.equal(sample["moving"], sample["frames"][:, 0] > 0.5)
        found.add(round(float(sample["frames"].max()) * 255))
        number, start = sample["drawn"].tolist()
        assert round(float(sample["frames"].max()) * 255) == (255, 200)[number]
        assert torch.equal(sample["moving"][0], blocks(8)[start, 0] > 0)
        name = f"{tmp_path}/{'ab'[number]}/frames[0:6]"
        assert learn.describe(data, default_collate([sample])) == f"{name} from frame {start} on"
    assert found == {255, 200}
    assert len(looked) == 2 + 8


def refusal(learn: MotionMask, data: object) -> str:
    with pytest.raises(FourdError) as refused:
        learn.sample(data, "train", generator())  # type: ignore[arg-type]
    return str(refused.value)


def test_masks_that_are_not_the_videos_own(tmp_path: Path) -> None:
    video = pictures(tmp_path / "video", blocks(12))
    short = pictures(tmp_path / "short", blocks(11))
    tall = pictures(tmp_path / "tall", blocks(12, (80, 48)))
    data = dataset(video)
    assert refusal(objective(short), data) == (
        f"the masks {short} have 11 frames and the video {video} has 12; give one mask for each frame"
    )
    assert refusal(objective(tall), data) == (
        f"the masks {tall} are 48x80 and the video {video} is 80x48; give masks of the whole frame, in its proportions"
    )
    both = Location(str(tmp_path / "[sv]*o*"))
    assert f"{both} holds masks of 2 videos and data.video names 1" in refusal(objective(both), data)
    with pytest.raises(MediaError, match="does not exist"):
        objective(Location(str(tmp_path / "none"))).sample(data, "train", generator())


def test_data_that_cannot_be_learned_from(tmp_path: Path) -> None:
    video = pictures(tmp_path / "video" / "0", blocks(12))
    pictures(tmp_path / "video" / "1", blocks(12, (48, 112)))
    assert 'use = "video" alone' in refusal(objective(video), miniature.Textures())
    folders = dataset(None, root=Location(str(tmp_path / "video")), layout="videos", held_out=0.5)
    assert "data.root holds out whole videos" in refusal(objective(video), folders)
    all_of_them = Location(str(tmp_path / "video/*"))
    said = refusal(objective(all_of_them), dataset(all_of_them))
    assert '[data] view = "short_side" makes inputs of 2 sizes' in said and "32 x 56" in said and "32 x 72" in said
    data = dataset(video, held_out=0)
    with pytest.raises(MediaError, match=r"no video in its part .held_out.*data\.held_out"):
        objective(video).sample(data, "held_out", generator())
    with pytest.raises(RecipeError, match=r"\[data\] view: .* multiples of 8 x 8"):
        objective(video).sample(dataset(video, view="resize", height=20), "train", generator())


def test_a_head_that_cannot_learn_masks() -> None:
    def build(**keys: object) -> None:
        MotionMask(MotionMask.Config(Location("masks"), **keys), whole)  # type: ignore[arg-type]

    spec = miniature.Patches.spec
    depth = Depth3D(Depth3D.Config(**attrs.asdict(Motion3D.example())), spec)
    whole = miniature.Miniature(heads={"depth": depth, "colour": miniature.Pixels(miniature.Pixels.Config(), spec)})
    with pytest.raises(ValueError, match="no head of this recipe, which has: depth, colour"):
        build()
    for head in ("depth", "colour"):
        with pytest.raises(ValueError, match=f'head = "{head}" cannot learn masks.*"motion3d"'):
            build(head=head)
    whole = system()
    whole.backbone.spec = attrs.evolve(spec, multiple=(2, 8, 8))
    build(frames=6)
    with pytest.raises(ValueError, match="frames = 5 is no multiple of the backbone's 2 frames"):
        build(frames=5)
