"""The whole of L4P against stored numbers of the reference: a small network, 32 frames in three windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fourd_core.build import build_system
from fourd_core.cli import main
from fourd_core.data import Clip, Predictions, Queries
from fourd_core.geometry import from_integer_centres, inverse
from fourd_core.interfaces import Head
from fourd_core.recipe import load_recipe
from fourd_core.stitching import Stitcher
from fourd_core.streaming import windows
from fourd_core.system import System
from fourd_core.weights.convert import licence_of

RECIPES = Path(__file__).parents[3] / "recipes"
DATA = Path(__file__).parent / "data/model_e2e.safetensors"
SETTINGS = (
    "backbone.size={embed_dim=48, depth=6, heads=4, patch=[2,14,14], mlp_ratio=4.363636363636363}",
    *(
        f"heads.{head}.{key}"
        for head in ("depth", "flow", "motion", "cameras")
        for key in ("features=8", "last=4", "layer_dims=[8,8,12,12]", "taps=[2,3,4,5]")
    ),
    "heads.track.mlp=64",
    "threads=1",
)


class Reference:
    """The stored numbers, in the conventions of this project."""

    def __init__(self) -> None:
        with safe_open(DATA, "pt") as handle:
            self.tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def state(self) -> dict[str, Tensor]:
        return {key[3:]: value for key, value in self.tensors.items() if key.startswith("sd/")}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning file as the authors publish it, with both names of the weights that have two."""
    state = reference.state()
    for name, value in list(state.items()):
        head, _, tail = name.partition(".scratch.layer")
        if tail.endswith("_rn.weight"):
            state[f"{head}.scratch.layer_rn.{int(tail[0]) - 1}.weight"] = value
    path = tmp_path_factory.mktemp("official") / "l4p.ckpt"
    torch.save({"epoch": 3, "state_dict": state, "pytorch-lightning_version": "2.4.0"}, path)
    return path


def build(checkpoint: Path, *more: str) -> System:
    return build_system(load_recipe(RECIPES / "l4p_full.toml", [*SETTINGS, f"weights={checkpoint}", *more]))


def clip_of(reference: Reference, start: int, count: int = 16, queries: int = 6) -> Clip:
    """A window of the stored video, queries counted from its start; the stored frames are normalised already."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    frames = reference["in/rgb_b3thw"].transpose(1, 2)[:, start : start + count]
    intrinsics = reference["in/intrinsics_b44t"].permute(0, 3, 1, 2)[:, start : start + count, :3, :3]
    points = reference["in/track_2d_pointquerries_bn3"][:, :queries]
    return Clip(
        frames * std[:, None, None] + mean[:, None, None],
        intrinsics=from_integer_centres(intrinsics),
        queries=Queries(points[..., 0].long() - start, points[..., 1:]),
    )


def run(system: System, reference: Reference, frame_count: int = 32, queries: int = 6) -> dict[str, dict[str, Tensor]]:
    """The windows of the stored video through the system: the finished frames of every prediction, put together."""
    stitcher = Stitcher({name: head.stitch for name, head in system.heads.items() if isinstance(head, Head)})
    parts: list[Predictions] = []
    states: dict[str, Any] = {}
    with torch.no_grad():
        for place in windows(frame_count, 16, 8):
            shift = None if place.start + 16 == frame_count else 8
            predictions, states = system.step(clip_of(reference, place.start, queries=queries), states, shift)
            joined = stitcher.add(predictions, 8)
            parts.append(Predictions({name: item.frames(0, place.final) for name, item in joined.items()}))
    return {
        name: {
            field: torch.cat([part[name].tensors()[field] for part in parts], 1)
            for field in parts[0][name].tensors()
        }
        for name in parts[0]
    }  # fmt: skip


def close(actual: Tensor, wanted: Tensor, relative: float = 1e-4) -> None:
    """Within `relative` of the largest number."""
    torch.testing.assert_close(actual, wanted, rtol=0, atol=relative * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def whole(checkpoint: Path, reference: Reference) -> dict[str, dict[str, Tensor]]:
    """As in the stored run: depth stitched alone, cameras not, intrinsics known."""
    system = build(checkpoint, "heads.cameras.stitch=overwrite", "heads.cameras.intrinsics=known")
    return run(system, reference)


def dense(maps: Tensor) -> Tensor:
    return maps.transpose(1, 2)[..., ::7, ::7]


def test_depth(whole: dict[str, dict[str, Tensor]], reference: Reference) -> None:
    close(dense(whole["depth"]["values"]), reference["out/depth_est_b1thw"])


def test_flow_of_all_frames_that_have_one(whole: dict[str, dict[str, Tensor]], reference: Reference) -> None:
    flow = dense(whole["flow"]["values"])
    assert flow[:, :, 0].isnan().all()
    close(flow[:, :, 1:], reference["out/flow_2d_backward_est_b2thw"][:, :, 1:])


def test_motion(whole: dict[str, dict[str, Tensor]], reference: Reference) -> None:
    close(dense(whole["motion"]["values"]), reference["out/dyn_mask_est_b1thw"].sigmoid())


def test_cameras(whole: dict[str, dict[str, Tensor]], reference: Reference) -> None:
    poses = reference["out/traj3d_est_b16t"].transpose(1, 2).reshape(1, 32, 4, 4)
    close(whole["cameras"]["world_from_cam"], poses)


def test_tracks_through_three_windows(whole: dict[str, dict[str, Tensor]], reference: Reference) -> None:
    check_tracks(whole["track"], reference, "out")
    live = whole["track"]["live"][0]
    named = reference["in/track_2d_pointquerries_bn3"][0, :, 0].long()
    assert torch.equal(live, torch.arange(32)[:, None] >= named)


def check_tracks(tracks: dict[str, Tensor], reference: Reference, run: str) -> None:
    """Where the reference speaks: to a thousandth of a pixel; elsewhere it holds zeros."""
    live = tracks["live"]
    xy = reference[f"{run}/track_2d_traj_est_bn2t"].permute(0, 3, 1, 2)
    torch.testing.assert_close(tracks["xy"][live], xy[live], rtol=0, atol=1e-3)
    close(tracks["visibility"][live], reference[f"{run}/track_2d_vis_est_bn1t"][:, :, 0].mT.sigmoid()[live])
    close(tracks["depth"][live], reference[f"{run}/track_2d_depth_est_bn1t"][:, :, 0].mT[live])


def test_one_window_with_the_memory_and_without(checkpoint: Path, reference: Reference) -> None:
    with_memory = run(build(checkpoint), reference, frame_count=16, queries=4)
    check_tracks(with_memory["track"], reference, "out16")
    system = build(checkpoint)
    del system.memories._modules["track"]  # the head alone, as it is trained on single windows
    check_tracks(run(system, reference, frame_count=16, queries=4)["track"], reference, "out16_single")


def test_the_published_names_are_accepted_whole(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(checkpoint)
    assert capsys.readouterr().err == ""  # nothing was left without weights


def test_the_joint_stitching_keeps_each_window_a_rigid_world(checkpoint: Path, reference: Reference) -> None:
    """Poses of the joined windows stay poses, and the first window's are the raw ones."""
    joint = run(build(checkpoint), reference)["cameras"]["world_from_cam"]
    rotation = joint[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-4)
    torch.testing.assert_close(joint @ inverse(joint), torch.eye(4).expand_as(joint), rtol=0, atol=1e-4)
    raw = run(build(checkpoint, "heads.cameras.stitch=overwrite"), reference)["cameras"]["world_from_cam"]
    torch.testing.assert_close(joint[:, :8], raw[:, :8])


def test_the_configuration_is_the_stored_one() -> None:
    with safe_open(DATA, "pt") as handle:
        config = json.loads(handle.metadata()["config"])
    assert config["embed"] == 48
    assert config["hooks"] == [2, 3, 4, 5]
    assert config["dpt_layer_dims"] == [8, 8, 12, 12]


def test_the_published_file_is_converted_by_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "convert", "l4p", str(checkpoint), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["made_from"] == "l4p.ckpt"
    assert "non-commercial" in manifest["licence"]
    direct, converted = build(checkpoint), build(tmp_path / "out/l4p.safetensors")
    for (name, mine), other in zip(direct.state_dict().items(), converted.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    # And as `weights:l4p`, once it was pulled.
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "kept"))
    assert main(["weights", "pull", "l4p", "--from", str(checkpoint), "--yes"]) == 0
    assert "CC-BY-NC-SA-4.0" in "".join(capsys.readouterr())
    pulled = build_system(load_recipe(RECIPES / "l4p_full.toml", SETTINGS))
    assert torch.equal(pulled.heads["depth"].dpt.last.weight, direct.heads["depth"].dpt.last.weight)
    for location in (checkpoint, tmp_path / "out/l4p.safetensors", "weights:l4p"):
        assert "CC-BY-NC-SA-4.0" in licence_of(str(location))


def test_another_file_is_not_kept_as_l4p(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"encoder.weight": torch.zeros(3)}}, tmp_path / "other.ckpt")
    (tmp_path / "page.ckpt").write_text("<html>")
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "kept"))
    for name in ("other.ckpt", "page.ckpt"):
        assert main(["weights", "pull", "l4p", "--from", str(tmp_path / name), "--yes"]) == 2
        assert "kept" in capsys.readouterr().err
        assert not [path for path in (tmp_path / "kept").rglob("*") if path.suffix == ".ckpt"]
