"""The data set of generated scenes: numbers and bits, videos, textures, shapes, preview."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fourd_synth import command, shapes
from fourd_synth.dataset import Synth
from fourd_synth.draws import Draws
from fourd_synth.preview import preview
from fourd_synth.shapes import Vector
from fourd_synth.sources import textures_of
from fourd_synth.textures import TextureBank
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Clip, Predictions
from fourd_core.errors import MediaError
from fourd_core.interfaces import GeneratesClips
from fourd_core.media.writers import write_png
from fourd_core.recipe import Location
from fourd_core.testing import check_component

CPU = torch.device("cpu")
SMALL = {"pixels": 32, "frames": 6, "patterns": 8, "texture_pixels": 32, "tracks": 8}


def synth(**settings: object) -> Synth:
    return Synth(Synth.Config(**{**SMALL, **settings}))  # type: ignore[arg-type]


def made(data: Synth, numbers: list[int], crop: int | None = 20) -> tuple[Clip, Predictions]:
    return data.generate("train", torch.tensor(numbers), 3, crop, 8, CPU)


def tensors(clip: Clip, truth: Predictions) -> list[Tensor]:
    assert clip.intrinsics is not None and clip.times is not None
    found = [clip.frames, clip.intrinsics, clip.times]
    return found + [tensor for prediction in truth.values() for tensor in prediction.tensors().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.nan_to_num(-7.0), y.nan_to_num(-7.0)) for x, y in zip(a, b, strict=True)
    )


def test_the_data_set_keeps_the_contract() -> None:
    check_component("datasets", Synth)
    assert isinstance(synth(), GeneratesClips)


@pytest.mark.parametrize("settings", [{}, {"reuse": 4}, {"layers": 0.5, "reuse": 2, "shading": "glossy"}])
def test_equal_numbers_give_equal_bits_in_any_batch(settings: dict[str, object]) -> None:
    batch = tensors(*made(synth(**settings), [9, 3, 4, 12, 5, 300]))
    alone = synth(**settings)
    made(alone, [8, 10, 2])  # something else is kept
    for place, number in ((2, 4), (5, 300), (0, 9)):
        assert same([tensor[place : place + 1] for tensor in batch], tensors(*made(alone, [number])))
    assert same([tensor[[4, 2]] for tensor in batch], tensors(*made(alone, [5, 4])))
    assert not same([tensor[:1] for tensor in batch], [tensor[3:4] for tensor in batch])


def test_little_room_for_reuse_changes_nothing() -> None:
    wide, narrow = synth(reuse=4), synth(reuse=4, cache_mb=1)
    for start in (0, 40, 2):
        numbers = list(range(start, start + 24))
        assert same(tensors(*made(wide, numbers, None)), tensors(*made(narrow, numbers, None)))
    assert len(narrow.generator("train")._kept) < len(wide.generator("train")._kept)


def test_seeds_and_parts_differ() -> None:
    train, _ = made(synth(), [1])
    other, _ = made(synth(seed=1), [1])
    held, _ = synth().generate("held_out", torch.tensor([1]), 3, 20, 8, CPU)
    assert not torch.equal(train.frames, other.frames)
    assert not torch.equal(train.frames, held.frames)
    banks = [synth().generator(part).bank.texels for part in ("train", "held_out")]
    assert not torch.equal(*banks)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"clips of 9 frames do not fit into videos of 6: set data\.frames"):
        synth().generate("train", torch.tensor([0]), 9, None, 0, CPU)
    with pytest.raises(ValueError, match=r"a crop of 40 pixels does not fit into 32"):
        synth().generate("train", torch.tensor([0]), 3, 40, 0, CPU)
    with pytest.raises(ValueError, match="there are no textures"):
        synth(patterns=0)
    assert "tracks" not in synth().generate("train", torch.tensor([0]), 3, None, 0, CPU)[1]


def test_a_video_is_the_same_whatever_frames_are_asked_for() -> None:
    video = synth().videos("train")[17]
    assert video.key == "train/17"
    assert video.known == {"depth", "flow", "motion", "cameras", "tracks"}
    some, all_frames = video.read([4, 1]), video.read(range(6))
    assert torch.equal(some, all_frames[[4, 1]])
    whole, part = video.truth(range(6)), video.truth([3, 4, 1])
    for name in ("depth", "motion"):
        assert torch.equal(part[name].values.nan_to_num(), whole[name].values[:, [3, 4, 1]].nan_to_num())  # type: ignore[attr-defined]
    assert torch.equal(part.tracks.xy, whole.tracks.xy[:, [3, 4, 1]])
    assert torch.equal(part.cameras.world_from_cam, whole.cameras.world_from_cam[:, [3, 4, 1]])
    assert torch.equal(part.flow[:, 1].nan_to_num(), whole.flow[:, 4].nan_to_num())
    assert part.flow[:, [0, 2]].isnan().all() and whole.flow[:, 0].isnan().all()
    assert whole.flow[:, 1:].isfinite().float().mean() > 0.9
    with pytest.raises(IndexError, match="frames 0 to 5, not 6"):
        video.read([6])


def test_the_videos_are_many_and_none_is_made_before_it_is_taken() -> None:
    videos = synth().videos("train")
    assert len(videos) == 1_000_000_000
    assert videos[10:20][3].key == "train/13"
    assert [video.key for video in synth(held_out=2).videos("all")] == ["held_out/0", "held_out/1"]


def test_flow_of_descending_frames_leads_to_the_later_one() -> None:
    video = synth(speed=1.5).videos("train")[3]
    forth, back = video.truth([2, 1]).flow[0, 1], video.truth([1, 2]).flow[0, 1]
    both = (forth + back)[:, 8:24, 8:24].norm(dim=0)
    assert forth[:, 8:24, 8:24].norm(dim=0).nanmedian() > 3 * both.nanmedian()


def test_random_numbers_are_even_and_belong_to_their_clip() -> None:
    draws = Draws(5, range(400))
    numbers = draws.uniform(50)
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(numbers.std() - 12**-0.5) < 0.01
    normal = draws.normal(50)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    alone = Draws(5, [7])
    assert np.array_equal(numbers[7:8], alone.uniform(50)) and np.array_equal(normal[7:8], alone.normal(50))


INSIDE = {
    "ellipsoid": lambda p: p.square().sum(-1) < 1,
    "box": lambda p: p.abs().amax(-1) < 1,
    "cylinder": lambda p: (p[..., :2].square().sum(-1) < 1) & (p[..., 2].abs() < 1),
}


@pytest.mark.parametrize("name", list(INSIDE))
def test_rays_meet_solids_where_steps_along_them_do(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.nn.functional.normalize(torch.randn(400, 3, dtype=torch.float64, generator=generator), dim=-1) * 4
    aim = torch.randn(400, 3, dtype=torch.float64, generator=generator) * 0.9
    way = (aim - start) / 4
    s = getattr(shapes, name)(Vector(*start.T), Vector(*way.T))
    steps = torch.linspace(0, 9, 9001, dtype=torch.float64)
    inside = INSIDE[name](start[:, None] + steps[:, None] * way[:, None])
    met = inside.any(1)
    first = steps[inside.float().argmax(1)]
    assert 50 < met.sum() < 390
    sure = inside.sum(1) > 3  # not only touched
    assert ((s - first).abs() < 2e-3)[sure].all()
    assert s[~met].isinf().float().mean() > 0.99


def test_flat_shapes_and_rooms() -> None:
    one = torch.ones(1, dtype=torch.float64)
    o, d = Vector(0 * one, 0 * one, 2 * one), Vector(0.3 * one, 0.1 * one, -one)
    assert shapes.plane(o, d).item() == 2
    still = (0 * one,) * 6
    assert shapes.cutout(o, d, still).item() == 2  # 0.63 from the middle, the radius is 0.8
    assert shapes.cutout(o, Vector(0.6 * one, 0.1 * one, -one), still).isinf().all()
    narrow = (-0.3 * one, 0 * one, 0 * one, 0 * one, 0 * one, 0 * one)  # narrower along x, wider along y
    assert shapes.cutout(o, d, narrow).isinf().all()
    assert shapes.cutout(o, Vector(0 * one, 0.5 * one, -one), narrow).item() == 2
    middle = Vector(0.5 * one, 0 * one, 0 * one)
    assert shapes.room(middle, Vector(-one, 0.5 * one, 0 * one)).item() == 1.5
    assert abs(shapes.dome(middle, Vector(-one, 0 * one, 0 * one)).item() - 1.5) < 1e-12


def test_textures_are_sampled_between_texels_at_the_pixels_size() -> None:
    texture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bank = TextureBank(texture)
    at = (torch.tensor([3.0, 15.0]) + 0.5) / 16

    def colours(u: Tensor, v: Tensor, footprint: float) -> Float[Tensor, "3 n"]:
        return bank.colours(torch.ones(len(u), dtype=torch.int64), u, v, torch.full((len(u),), footprint))

    exact = texture[1, :, [5, 5], [3, 15]]
    rows = torch.full((2,), 5.5 / 16)
    assert torch.allclose(colours(at, rows, 1 / 16), exact, atol=2.1e-3)
    assert torch.allclose(colours(at + 2, rows - 1, 1 / 16), exact, atol=2.1e-3)  # it repeats
    between = colours(torch.tensor([1.0]), rows[:1], 1 / 16)
    assert torch.allclose(between[:, 0], (texture[1, :, 5, 15] + texture[1, :, 5, 0]) / 2, atol=4e-3)
    coarse = colours(torch.tensor([1 / 16 + 1 / 8]), torch.tensor([1 / 16]), 2 / 16)
    assert torch.allclose(coarse[:, 0], texture[1, :, :2, 2:4].mean((1, 2)), atol=4e-3)


def test_pictures_are_textures_of_one_part_only(tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 90), ("c", 170), ("d", 250)):
        write_png(tmp_path / f"{name}.png", torch.full((3, 20, 30), value, dtype=torch.uint8))
    config = Synth.Config(patterns=0, textures=(Location(str(tmp_path)),), texture_pixels=32)
    values = [(textures_of(config, 0, held_out=held) * 255).round().unique().tolist() for held in (False, True)]
    assert values == [[10, 90], [170, 250]]
    one = Synth.Config(patterns=0, textures=(Location(str(tmp_path / "a.png")),), texture_pixels=32)
    with pytest.raises(MediaError, match=r"name two in data\.textures"):
        textures_of(one, 0, held_out=True)


def test_a_preview_shows_everything(tmp_path: Path) -> None:
    preview(synth(), 2, "train", tmp_path / "scene.png", side=64)
    assert (tmp_path / "scene.png").stat().st_size > 5000
    with pytest.raises(ValueError, match='there is no video 99: "held_out" has 64'):
        preview(synth(), 99, "held_out", tmp_path / "none.png")


def test_the_command_writes_a_film(tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "scene.mp4"
    words = ["preview", "--seed", "7", "--pixels", "32", "--frames", "3", "--layers", "--out", str(out)]
    assert command.run(parser.parse_args(words)) == 0
    assert out.stat().st_size > 1000
