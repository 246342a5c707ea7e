"""The tracker against stored numbers, names and counts of L4P's inference release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from fourd_sam_sparse.readout import enlarged_mean, expected_position
from fourd_sam_sparse.written import LOW_RANK, LowRank, Written
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Clip, Grid, Predictions, Queries, TokenMap, Tokens, Tracks
from fourd_core.errors import WeightsError
from fourd_core.interfaces import BackboneSpec, TapSpec
from fourd_core.recipe import Location
from fourd_core.stitching import Stitcher

DATA = Path(__file__).parent / "data"
PREFIX = "l4p_model.task_heads.track_2d."
GRID, FRAMES, SIZE, SHIFT = Grid(8, 4, 4), 16, (56, 56), 8
SPEC = BackboneSpec((TapSpec(96, (2, 14, 14)),), (2, 14, 14), (0.5,) * 3, (0.25,) * 3, (16, 8))
PIXELS = 1e-3


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(DATA / "head_track_tiny.safetensors")


@pytest.fixture(scope="module")
def checkpoint(stored: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning checkpoint of L4P with this head, and other parts."""
    path = tmp_path_factory.mktemp("l4p") / "l4p.ckpt"
    state = {key.removeprefix("sd/"): value for key, value in stored.items() if key.startswith("sd/")}
    state["l4p_model.video_encoder.patch_embed.proj.bias"] = torch.zeros(96)
    state["l4p_model.task_heads.depth.task_head.dpt.head1.0.bias"] = torch.zeros(8)
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def head(checkpoint: Path) -> SamTrack:
    head = SamTrack(SamTrack.Config(mlp=128, weights=Location(str(checkpoint))), SPEC).eval()
    head.load_pretrained()
    return head


@pytest.fixture(scope="module")
def memory(checkpoint: Path) -> TrackMemory:
    memory = TrackMemory(TrackMemory.Config(weights=Location(str(checkpoint))), SPEC).eval()
    memory.load_pretrained()
    return memory


def window(stored: dict[str, Tensor], number: int, queries: Queries) -> tuple[Tokens, Clip]:
    tokens = Tokens({0: TokenMap(stored[f"features/w{number}"], GRID)})
    return tokens, Clip(torch.zeros(1, FRAMES, 3, *SIZE), queries=queries)


def user_queries(stored: dict[str, Tensor], first: int = 0) -> Queries:
    points = stored["in/queries_bn3"]
    return Queries((points[..., 0] - 0.5).long() - first, points[..., 1:])


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """Within a tolerance, of each number or of the largest."""
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def assert_tracks(tracks: Tracks, wanted: dict[str, Tensor], where: str, names: tuple[str, str, str]) -> None:
    """Positions within a thousandth of a pixel, the rest within 1e-4, in the frames where the tracker speaks."""
    xy, logit, depth = (wanted[f"{where}/{name}"][0] for name in names)
    live = tracks.live[0]
    assert float((tracks.xy[0] - xy.permute(2, 0, 1))[live].abs().max()) < PIXELS
    assert_close(tracks.visibility[0][live], logit[:, 0].sigmoid().T[live])
    assert tracks.depth is not None
    assert_close(tracks.depth[0][live], depth[:, 0].T[live])


def outputs(count: str = "track_2d_{}_est_bn{}t") -> tuple[str, str, str]:
    return count.format("traj", 2), count.format("vis", 1), count.format("depth", 1)


@torch.no_grad()
def test_prompts_and_positions(head: SamTrack, stored: dict[str, Tensor]) -> None:
    positions = head.prompt_encoder.positions(GRID, torch.device("cpu"))
    torch.testing.assert_close(positions[:, ::4], stored["dbg/dense_pe"][0].flatten(1).T, atol=1e-6, rtol=0)
    sparse = head.prompt_encoder(*prompts(stored))
    torch.testing.assert_close(sparse, stored["dbg/sparse_embeddings"], atol=1e-6, rtol=0)


def prompts(stored: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six points with the labels 0, 1 and 2, with and without a feature."""
    labels, handed = stored["in/single_labels_bn"][0].long(), stored["in/single_promptlabels_bn"][0].bool()
    places = stored["in/queries_bn3"][0, :6] / torch.tensor([FRAMES, SIZE[1], SIZE[0]])
    return places, labels, stored["in/single_promptfeatures_bnc"][0], handed


@torch.no_grad()
def test_a_single_window(head: SamTrack, memory: TrackMemory, stored: dict[str, Tensor]) -> None:
    """Without a memory: nothing is added to the video's tokens."""
    tracks = head(*window(stored, 0, user_queries(stored).part(0, 6)))
    everywhere = Tracks(tracks.xy, tracks.visibility, torch.ones_like(tracks.live), tracks.depth)
    assert_tracks(everywhere, stored, "out/single", outputs())
    feature = memory.prompt_feature_linear_layer(tracks.remembered["feature"])
    assert_close(feature, stored["out/single/track_2d_prompt_features_bnc"])
    frame = torch.tensor([0, 0, 3, 8, 12, 15])
    assert torch.equal(tracks.live[0], torch.arange(16)[:, None] >= frame)


@torch.no_grad()
def test_labels_and_features(head: SamTrack, memory: TrackMemory, stored: dict[str, Tensor]) -> None:
    """A single window with all labels, step by step."""
    positions = head.prompt_encoder.positions(GRID, torch.device("cpu"))
    shared = head.mask_decoder.shared(stored["features/w0"][0], torch.zeros(1, 0, 96), positions, GRID)
    nothing = LowRank(torch.zeros(6, 1, 0), torch.zeros(6, 0, 0), torch.zeros(6, 0, 96))
    maps, feature, written = head.mask_decoder(head.prompt_encoder(*prompts(stored)), nothing, shared)
    assert_close(maps[0], stored["dbg/low_masks_n0"])
    assert_close(feature, stored["dbg/io_features"][:, 5])
    xy, logit, depth = (stored[f"out/single_variant/{name}"][0] for name in outputs())
    assert float((expected_position(maps[:, 0], SIZE) - xy.mT).abs().max()) < PIXELS
    assert_close(enlarged_mean(maps[:, 1:], SIZE), torch.stack([logit[:, 0], depth[:, 0].log()], 1))
    where = "out/single_variant/track_2d_{}"
    assert_close(memory.prompt_feature_linear_layer(feature), stored[where.format("prompt_features_bnc")][0])
    weight, bias = memory.processed_video_features_proj.weight.mT, memory.processed_video_features_proj.bias
    history = written.linear(weight, bias).on(shared.base[None] @ Written.through(weight, written.norms))
    assert_close(history[:2, ::4], stored[where.format("enc_features_with_track_history_bnpc")][0])


@torch.no_grad()
def test_windows_with_memory(head: SamTrack, memory: TrackMemory, stored: dict[str, Tensor]) -> None:
    """Three windows, eight points; one begins in the second window, one in the third's last frames."""
    stitcher = Stitcher({"tracks": head.stitch})
    state: Any = None
    finished = []
    for number in range(3):
        tokens, clip = window(stored, number, user_queries(stored, number * SHIFT))
        state = state or memory.initial(tokens, clip)
        seen, shown = memory.read(state, tokens, clip)
        check_what_is_given(stored, number, seen, shown.queries)
        tracks = head(seen, shown)
        everywhere = Tracks(tracks.xy, tracks.visibility, torch.ones_like(tracks.live), tracks.depth)
        assert_tracks(everywhere, stored, f"trace/w{number}", ("traj", "vis", "depth"))
        feature = memory.prompt_feature_linear_layer(tracks.remembered["feature"])
        assert_close(feature, stored[f"trace/w{number}/promptfeatures_out"])
        joined = stitcher.add(Predictions({"tracks": tracks}), SHIFT)["tracks"]
        finished.append(joined if number == 2 else joined.frames(0, SHIFT))
        state = memory.update(state, tokens, clip, tracks, SHIFT)
    tensors = {name: torch.cat([part.tensors()[name] for part in finished], 1) for name in finished[0].tensors()}
    tracks = finished[0].with_tensors(tensors)
    assert isinstance(tracks, Tracks)
    assert torch.equal(tracks.live[0].T, stored["out/windowed/track_2d_vis_est_bn1t"][0, :, 0] > -10)
    assert_tracks(tracks, stored, "out/windowed", outputs())


def check_what_is_given(stored: dict[str, Tensor], number: int, seen: Tokens, queries: Queries | None) -> None:
    assert queries is not None
    points = torch.cat([queries.frame[..., None] + 0.5, queries.xy], -1)
    assert float((points - stored[f"trace/w{number}/queries"]).abs().max()) < PIXELS
    tokens = seen[0].values[0].clone()
    assert ("scale" in queries.recalled) == (number > 0)
    if number:
        few = LowRank(*(queries.recalled[name][0] for name in LOW_RANK))
        history = few.on(queries.recalled["base"][0])
        assert history.shape == (8, 64, 96)
        tokens[:64] += history[0]
    assert_close(tokens[::4], stored[f"trace/w{number}/tokens_in_n0"][0])


def test_heat_maps(stored: dict[str, Tensor]) -> None:
    maps = stored["heat/in/low_masks"]
    xy = expected_position(maps[:, 0], SIZE)
    torch.testing.assert_close(xy, stored["heat/out/low_xy"][0], atol=1e-4, rtol=0)
    logit, log_depth = enlarged_mean(maps[:, 1:], SIZE).unbind(1)
    assert_close(logit, stored["heat/out/low_vis_mean"], 1e-5)
    assert_close(log_depth.exp(), stored["heat/out/low_depth_exp"], 1e-5)


def test_names_shapes_and_count_of_the_released_head() -> None:
    patterns = json.loads((DATA / "official_keys_track_2d.json").read_text())
    published = {
        key.replace(".N.", f".{i}."): shape
        for key, shape in patterns.items()
        for i in range(3 if "mlps.N." in key else 2)
    }
    spec = BackboneSpec((TapSpec(1408, (2, 14, 14)),), (2, 14, 14), (0.5,) * 3, (0.25,) * 3)
    with torch.device("meta"):
        head, memory = SamTrack(SamTrack.Config(), spec), TrackMemory(TrackMemory.Config(), spec)
    own = {key: list(value.shape) for key, value in (head.state_dict() | memory.state_dict()).items()}
    assert own == published
    assert len(published) == 120
    assert sum(p.numel() for part in (head, memory) for p in part.parameters()) == 68_124_192
    counts = [sum(p.numel() for p in part.parameters()) for part in
              (head.mask_decoder.transformer, head.mask_decoder.output_hypernetworks_mlps,
               head.mask_decoder.output_upscaling)]  # fmt: skip
    assert counts == [47_279_808, 12_647_184, 4_213_968]


@pytest.mark.parametrize("prefix", ["", PREFIX, "track_2d."])
def test_weights_behind_any_prefix(tmp_path: Path, stored: dict[str, Tensor], prefix: str) -> None:
    names = {key.removeprefix(f"sd/{PREFIX}"): value for key, value in stored.items() if key.startswith("sd/")}
    torch.save({prefix + key: value for key, value in names.items()}, tmp_path / "head.pth")
    location = Location(str(tmp_path / "head.pth"))
    head, memory = SamTrack(SamTrack.Config(mlp=128, weights=location), SPEC), TrackMemory(
        TrackMemory.Config(weights=location), SPEC
    )  # fmt: skip
    for part in (head, memory):
        part.load_pretrained()
        assert all(torch.equal(value, names[key]) for key, value in part.state_dict().items())


def test_weights_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    wrong = SamTrack(SamTrack.Config(mlp=64, weights=Location(str(checkpoint))), SPEC)
    with pytest.raises(WeightsError, match=r"lin1.bias is 128 in the file and 64 here"):
        wrong.load_pretrained()
    torch.save({"video_encoder.norm.bias": torch.zeros(3)}, tmp_path / "other.pth")
    for part in (SamTrack(SamTrack.Config(weights=Location(str(tmp_path / "other.pth"))), SPEC),
                 TrackMemory(TrackMemory.Config(weights=Location(str(tmp_path / "other.pth"))), SPEC)):  # fmt: skip
        with pytest.raises(WeightsError, match=r"other.pth does not fit this network .* missing"):
            part.load_pretrained()


def test_whose_weights_they_are(checkpoint: Path, head: SamTrack) -> None:
    named = head.pretrained()
    assert named is not None
    assert (named.location, named.source) == (str(checkpoint), "L4P")
    assert SamTrack(SamTrack.Config(), SPEC).pretrained() is None
