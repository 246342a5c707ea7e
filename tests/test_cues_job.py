"""The cue job in threads: what it computes, keeps, finds again, leaves out and refuses; training on what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import attrs
import cue_parts
import fsspec
import numpy as np
import pytest
import torch
import zarr
from cue_parts import RECIPE, calls, install, write_videos
from helpers import Fourd

from fourd_core.build import build_dataset, build_system
from fourd_core.cues import CueStore, StoredCues, open_kept, sample_generator
from fourd_core.cues.backlog import make_backlog
from fourd_core.cues.packing import pack
from fourd_core.cues.plan import Listing, make_plan
from fourd_core.cues.work import Settings, Workplace
from fourd_core.data import Clip, CueMaps
from fourd_core.errors import FourdError, RunError
from fourd_core.geometry.flow import flow_disagreement
from fourd_core.media.writers import encode_png
from fourd_core.recipe import Recipe, load_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe beside its videos."""
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "videos")
    (tmp_path / "cues.toml").write_text(RECIPE)
    return tmp_path


def settings(*words: str) -> list[str]:
    return [part for word in words for part in ("--set", word)]


def result(folder: Path, run: str) -> dict[str, Any]:
    (table,) = json.loads((folder / run / "cues/result.json").read_text())
    return table


def drawn(recipe: Recipe, skip: frozenset[str] = frozenset()) -> set[tuple[str, tuple[int, ...]]]:
    """What a training's own loop draws: the key of the video and the frames."""
    system, data = build_system(recipe), build_dataset(recipe)
    objective, train = system.objectives["train"], recipe.stages["train"].config
    objective.skip_videos = skip
    found = set()
    for number in range(train.steps * train.accumulate):
        for place in range(train.batch_size):
            draw = objective.draw(data, "train", sample_generator(recipe.seed, "train", number, place))
            found.add((data.videos("train")[draw.video].key, draw.frames))
    return found


def opened(recipe: Recipe) -> StoredCues | None:
    train = recipe.stages["train"].config
    system = build_system(recipe)
    objective = system.objectives["train"]
    return open_kept(
        recipe, system, build_dataset(recipe), "train", objective, train.steps * train.accumulate, train.batch_size
    )


def test_every_draw_is_kept_once(folder: Path, fourd: Fourd) -> None:
    said = fourd("run", "cues.toml", "cues", "--out", "a", check=0).stdout
    recipe = load_recipe(folder / "cues.toml")
    wanted = drawn(recipe)
    assert re.search(rf"^cues: {len(wanted)} of \w+ computed and 0 there already; kept in ", said, re.MULTILINE)
    assert sum(calls(folder)) == len(wanted) and max(calls(folder)) == 4
    table = result(folder, "a")
    (row,) = table["rows"]
    assert (row["clips"], row["computed"], row["reused"]) == (len(wanted), len(wanted), 0)
    files = list((folder / "kept.zarr/flow/maps").glob("c.*"))
    assert row["units"] == len(files) == -(-len(wanted) // 4)
    assert row["bytes"] == sum(file.stat().st_size for file in files)
    kept, data, cue = opened(recipe), build_dataset(recipe), build_system(recipe).cues["flow"]
    assert kept is not None
    for video in data.videos("train"):
        for frames in (frames for key, frames in wanted if key == video.key):
            seen = video.read(frames)[..., :32, :32]
            truth = cue(Clip(seen[None].float() / 255)).values
            maps = kept.read("flow", video, frames)
            # float16 has 11 bits.
            assert torch.allclose(maps.values, truth, rtol=2**-11, atol=1e-6)
            assert maps.valid is not None and maps.valid.all() and maps.disagreement is not None
            assert maps.disagreement.shape == (1, 2, 1, 32, 32)
            turned = kept.read("flow", video, frames[::-1])
            assert torch.equal(turned.values, maps.values.flip(1))
    with pytest.raises(RunError, match=r"holds no maps of frames 0 and 5 of v0 for the cue flow"):
        kept.read("flow", data.videos("train")[0], (0, 5))


def test_the_provenance(folder: Path, fourd: Fourd) -> None:
    (folder / "net.bin").write_bytes(b"weights")
    fourd("run", "cues.toml", "cues", "--out", "a", *settings("cues.flow.file=net.bin"), check=0)
    group = zarr.open_group(folder / "kept.zarr", mode="r")
    attributes = dict(group["flow"].attrs)
    assert attributes["provenance"] == {
        "network": {"use": "cueparts:counted", "kind": "flow", "alone": False, "gain": 20.0, "deaths": 0},
        "weights": {"sha256": hashlib.sha256(b"weights").hexdigest(), "licence": "none"},
        "frames": {"objective": "cueparts:pairs", "size": 32},
    }
    assert (attributes["precision"], attributes["unit"], attributes["kind"]) == ("float16", 4, "flow")
    assert attributes["channels"] == ["x", "y", "disagreement"]
    (plan,) = group.attrs["plans"]
    assert (plan["seed"], plan["stage"], plan["batches"], plan["places"]) == (0, "train", 8, 2)
    assert "fourd-core" in group.attrs["versions"] and group.attrs["failed"] == {}
    # The same weights elsewhere are the same weights.
    (folder / "net.bin").rename(folder / "moved.bin")
    fourd("run", "cues.toml", "cues", "--out", "b", *settings("cues.flow.file=moved.bin"), check=0)
    assert result(folder, "b")["rows"][0]["computed"] == 0


def test_again_and_with_more_steps(folder: Path, fourd: Fourd) -> None:
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    first, bytes_before = sum(calls(folder)), snapshot(folder / "kept.zarr/flow")
    fourd("run", "cues.toml", "cues", "--out", "b", check=0)
    assert sum(calls(folder)) == first and snapshot(folder / "kept.zarr/flow") == bytes_before
    more = settings("stages.train.steps=10", "stages.cues.processes=2")
    fourd("run", "cues.toml", "cues", "--out", "c", *more, check=0)
    recipe = load_recipe(folder / "cues.toml", ["stages.train.steps=10", "stages.train.batch_size=4"])
    assert sum(calls(folder)) == len(drawn(recipe)) > first
    (row,) = result(folder, "c")["rows"]
    assert (row["computed"], row["reused"]) == (len(drawn(recipe)) - first, first)
    assert opened(recipe) is not None
    fourd("run", "cues.toml", "cues", "--out", "d", check=0)
    assert sum(calls(folder)) == len(drawn(recipe))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_job_goes_on_with_its_own_units(folder: Path, fourd: Fourd) -> None:
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    whole = snapshot(folder / "kept.zarr/flow")
    maps = folder / "kept.zarr/flow/maps"
    for number in (1, 3):
        (maps / f"c.{number}.0.0.0.0").unlink()
    (maps / "c.3.0.0.0.0123.partial").write_bytes(b"half")
    before = sum(calls(folder))
    fourd("run", "cues.toml", "cues", "--out", "b", check=0)
    assert sum(calls(folder)) == before + 4 + 1
    assert snapshot(folder / "kept.zarr/flow") == whole


def test_frames_that_are_seen_alone_are_kept_once(folder: Path, fourd: Fourd) -> None:
    words = ["cues.flow.kind=map", "cues.flow.alone=true"]
    fourd("run", "cues.toml", "cues", "--out", "a", *settings(*words), check=0)
    recipe = load_recipe(folder / "cues.toml", words)
    frames = {(key, frame) for key, frames in drawn(recipe) for frame in frames}
    assert sum(calls(folder)) == len(frames) < 2 * len(drawn(recipe))
    kept, video = opened(recipe), build_dataset(recipe).videos("train")[0]
    assert kept is not None
    frames_of = next(frames for key, frames in drawn(recipe) if key == video.key)
    maps = kept.read("flow", video, frames_of)
    grey = video.read(frames_of)[..., :32, :32].float().mean(1, keepdim=True)[None] / 255
    assert maps.kind == "map" and maps.valid is not None and maps.disagreement is None
    assert torch.equal(maps.valid, grey > 0.1) and not maps.valid.all()
    assert torch.allclose(maps.values, (20 * grey).where(maps.valid, 0.0), rtol=2**-11)


@pytest.mark.parametrize("harm", ["one frame", "the first frame"])
def test_a_video_that_cannot_be_read_is_left_out(folder: Path, fourd: Fourd, harm: str) -> None:
    broken = folder / "videos/v2" / ("3.png" if harm == "one frame" else "0.png")
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    said = fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    assert said.stderr.count("v2 is left out: ") == 1
    table = result(folder, "a")
    (failed,) = table["protocol"]["failed"]
    assert failed["video"] == "v2" and str(broken) in failed["reason"]
    recipe = load_recipe(folder / "cues.toml")
    kept = opened(recipe)
    assert kept is not None and kept.failed == frozenset({"v2"})
    wanted = drawn(recipe, kept.failed)
    assert "v2" not in {key for key, _ in wanted}
    assert sum(calls(folder)) >= table["rows"][0]["clips"] == len(wanted)
    fourd("run", "cues.toml", "train", "--out", "t", check=0)  # redraws as the job did, or it would not find its pairs
    before = calls(folder)
    again = fourd("run", "cues.toml", "cues", "--out", "b", check=0)
    assert calls(folder) == before and "left out" not in again.stderr
    broken.write_bytes(whole)
    fourd("run", "cues.toml", "cues", "--out", "c", *settings("stages.cues.retry=true"), check=0)
    kept = opened(recipe)
    assert kept is not None and not kept.failed and result(folder, "c")["protocol"]["failed"] == []
    assert "v2" in {key for key, _ in drawn(recipe)}


def test_training_reads_what_is_kept(folder: Path, fourd: Fourd) -> None:
    exact = settings("stages.cues.precision=float32")
    fourd("run", "cues.toml", "--out", "a", *exact, check=0)  # both stages, one after the other
    asked = len(calls(folder))
    fourd("run", "cues.toml", "train", "--out", "b", *settings("stages.train.workers=2"), check=0)
    assert len(calls(folder)) == asked
    fourd("run", "cues.toml", "train", "--out", "c", *settings("cue_cache=none"), check=0)
    assert len(calls(folder)) > asked
    losses = [[json.loads(line)["loss"] for line in (folder / run / "metrics.jsonl").open()] for run in "abc"]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-5) and len(losses[0]) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cues.flow.gain=3", r"kept.zarr were made by another network \(gain = 20.0 there, 3.0 now\)"),
        ("cues.flow.file=other.bin", r"were made by other weights \(sha256 = "),
        (
            "stages.train.objective.size=16",
            r"another resolution or view of the frames \(size = 32 there, 16 now\); choose another cue_cache",
        ),
        ("stages.train.steps=9", r"lacks \d of the \d\d clips that \[stages.train\] draws, for the cue flow; run"),
        ("seed=1", r"lacks \d+ of the \d\d clips"),
    ],
)
def test_another_trainings_cache(folder: Path, fourd: Fourd, change: str, message: str) -> None:
    (folder / "net.bin").write_bytes(b"weights")
    (folder / "other.bin").write_bytes(b"others")
    base = ["cues.flow.file=net.bin"]
    fourd("run", "cues.toml", "cues", "--out", "a", *settings(*base), check=0)
    assert opened(load_recipe(folder / "cues.toml", base)) is not None
    with pytest.raises(FourdError, match=message):
        opened(load_recipe(folder / "cues.toml", [*base, change]))
    if "made by" in message or "another" in message:  # neither will the job add to it
        said = fourd("run", "cues.toml", "cues", "--out", "b", *settings(*base, change), check=2)
        assert "choose another cue_cache" in said.stderr and not (folder / "b").exists()


def test_fewer_steps_and_other_videos(folder: Path, fourd: Fourd) -> None:
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    assert opened(load_recipe(folder / "cues.toml", ["stages.train.steps=5"])) is not None
    assert opened(load_recipe(folder / "cues.toml", ["cue_cache=elsewhere.zarr"])) is None
    assert opened(load_recipe(folder / "cues.toml", ["cue_cache=none"])) is None
    shutil.copytree(folder / "videos/v1", folder / "videos/v9")
    with pytest.raises(RunError, match=r"\(it was made for other videos\)"):
        opened(load_recipe(folder / "cues.toml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["cue_cache=none"], "[stages.cues] has no place to keep cues: set cue_cache ="),
        (["stages.cues.stage=teach"], 'stages.cues.stage = "teach" is no training stage of this recipe, which has: tr'),
        (["stages.train.objective.draws=false"], "the objective Pairs does not say which frames it will draw"),
        (["cue_cache=thesis"], "thesis holds something else than cue maps"),
        (["cue_cache=thesis/a.txt"], "a.txt holds something else than cue maps"),
        (["cue_cache=nowhere://x"], "cue_cache = nowhere://x is no place to write to: "),
        (["cluster.workers=2", "cue_cache=memory://x"], "cue_cache is in the memory of one process"),
        (["data.root=missing"], "missing"),
        (["cue_cache=thesis/a.txt/b"], "a part of the path is a file, not a folder"),
    ],
)
def test_one_sentence(folder: Path, fourd: Fourd, changes: list[str], message: str) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis/a.txt").write_text("x")
    said = fourd("run", "cues.toml", "cues", "--out", "a", *settings(*changes), check=2)
    assert message in said.stderr and "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith("fourd: ")


def test_no_cues(folder: Path, fourd: Fourd) -> None:
    text = RECIPE.replace('[cues.flow]\nuse = "counted"\nlog = "calls.txt"\n', "")
    (folder / "cues.toml").write_text(text)
    said = fourd("run", "cues.toml", "cues", "--out", "a", check=2)
    assert "[stages.cues] has nobody to ask: the recipe has no [cues.NAME]" in said.stderr


def test_a_url(folder: Path, fourd: Fourd) -> None:
    where = f"cue_cache=memory://kept-{folder.name}"
    fourd("run", "cues.toml", "--out", "a", *settings(where), check=0)
    files = fsspec.filesystem("memory").find(f"/kept-{folder.name}/flow/maps")
    fourd("run", "cues.toml", "cues", "--out", "b", *settings("cue_cache=file://" + str(folder / "kept.zarr")), check=0)
    local = {path.name: path.read_bytes() for path in (folder / "kept.zarr/flow/maps").iterdir()}
    assert {name.rpartition("/")[2]: fsspec.filesystem("memory").cat_file(name) for name in files} == local


def test_clips_of_two_sizes(folder: Path, fourd: Fourd) -> None:
    for frame in range(6):
        small = torch.zeros(3, 24, 48, dtype=torch.uint8)
        (folder / f"videos/v5/{frame}.png").write_bytes(encode_png(small))
    said = fourd("run", "cues.toml", "cues", "--out", "a", check=2)
    assert "[cues.flow]" in said.stderr and "in one size" in said.stderr


def test_stopped_and_gone_on(folder: Path, fourd: Fourd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first answer: what is written stays, the rest follows."""
    ask = cue_parts.Counted.__call__

    def and_stop(cue: Any, clip: Clip) -> Any:
        if len(calls(folder)) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(cue, clip)

    monkeypatch.setattr(cue_parts.Counted, "__call__", and_stop)
    said = fourd("run", "cues.toml", "cues", "--out", "a", check=130)
    assert "To go on: " in said.stderr
    monkeypatch.undo()
    monkeypatch.syspath_prepend(folder / "site")
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    assert sum(calls(folder)) == len(drawn(load_recipe(folder / "cues.toml")))


def test_another_job_at_work(folder: Path, fourd: Fourd) -> None:
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    store = CueStore.find(str(folder / "kept.zarr"))
    assert store is not None
    with store.alone():
        said = fourd("run", "cues.toml", "cues", "--out", "b", check=2)
    assert "another process is computing cues into" in said.stderr


def test_too_large_for_float16(folder: Path, fourd: Fourd) -> None:
    large = settings("cues.flow.gain=1e6")
    said = fourd("run", "cues.toml", "cues", "--out", "a", *large, check=2)
    assert 'too large for float16; set precision = "float32"' in said.stderr
    shutil.rmtree(folder / "kept.zarr")
    fourd("run", "cues.toml", "cues", "--out", "b", *large, *settings("stages.cues.precision=float32"), check=0)
    said = fourd("run", "cues.toml", "cues", "--out", "c", *large, check=2)
    assert 'keeps the cue flow in float32; set stages.cues.precision = "float32"' in said.stderr
    assert np.isfinite(np.asarray(zarr.open_group(folder / "kept.zarr", mode="r")["flow/maps"][0])).all()


def test_the_disagreement_is_computed_before_rounding() -> None:
    flow = 8 * torch.randn(1, 2, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    kept = torch.from_numpy(pack(CueMaps(flow, "flow"), "float16"))
    assert torch.equal(kept[:, :, 2:], flow_disagreement(flow).half())
    assert not torch.equal(kept[:, :, 2:], flow_disagreement(flow.half().float()).half())


def test_a_disk_that_takes_no_more(folder: Path, fourd: Fourd) -> None:
    """A file may not grow over 20 kB: no unit is written, none is left half-written, and later all of them are."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        said = fourd("run", "cues.toml", "cues", "--out", "a", check=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"fourd: cannot write {folder / 'kept.zarr'}: the file grew over the size limit" in said.stderr
    assert [path.name for path in (folder / "kept.zarr/flow/maps").iterdir()] == ["zarr.json"]
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    assert opened(load_recipe(folder / "cues.toml")) is not None


def test_a_unit_is_computed_once_whoever_gets_it(folder: Path) -> None:
    """As when a worker dies after the work and before its answer arrived: dask gives the unit to another one."""
    recipe = load_recipe(folder / "cues.toml")
    system, data = build_system(recipe), build_dataset(recipe)
    objective, store = system.objectives["train"], CueStore.create(str(folder / "kept.zarr"), {})
    plan = make_plan(Listing(data), objective, 0, "train", 2, 2)
    units = list(make_backlog(store.add_cue("flow", 4, 3, {}), plan.rows, plan.keys))
    place = Workplace(Settings("train", 4, "float16"), store, data, system.cues, objective, torch.device("cpu"))
    assert [place.compute(unit).failed for unit in (*units, *units)] == [{}] * 2 * len(units)
    assert len(calls(folder)) == len(units)
    moved = attrs.evolve(units[0], number=9, videos=units[0].videos + 1)
    with pytest.raises(RunError, match="all workers must see the same data"):
        place.compute(moved)


def test_a_video_that_breaks_later_changes_the_draws_of_other_trainings(folder: Path, fourd: Fourd) -> None:
    fourd("run", "cues.toml", "cues", "--out", "a", *settings("seed=1"), check=0)
    other = load_recipe(folder / "cues.toml", ["seed=1"])
    assert opened(other) is not None
    for frame in range(6):
        (folder / f"videos/v2/{frame}.png").write_bytes(b"no picture")
    fourd("run", "cues.toml", "cues", "--out", "b", check=0)
    with pytest.raises(RunError, match=r"lacks \d of the \d\d clips"):
        opened(other)
