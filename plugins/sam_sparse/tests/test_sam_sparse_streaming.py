"""The tracker in the core's stream: any length, both directions, groups of points, and going on after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import Chain, Nothing, TrackMemory
from torch import Tensor, nn

from fourd_core.data import Grid, Predictions, Queries, TokenMap, Tokens, Tracks
from fourd_core.interfaces import Backbone, BackboneSpec, TapSpec
from fourd_core.media.views import exact
from fourd_core.sinks import MemorySink
from fourd_core.streaming import Reversed, StreamConfig, stream
from fourd_core.system import System
from fourd_core.testing.miniature import MovingTexture

SIZE = (96, 128)
PATCH = (2, 16, 16)


class Blocks(Backbone):
    """Blocks of two frames, projected at random."""

    spec = BackboneSpec((TapSpec(16, PATCH),), PATCH, (0.5,) * 3, (0.25,) * 3, (16, 8))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(3, 16, PATCH, PATCH)

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        maps = self.layer((frames.transpose(1, 2) - 0.5) / 0.25)
        return Tokens({0: TokenMap(maps.flatten(2).mT, Grid(*maps.shape[2:]))})


def system(direction: Any = "forward", memory: type[Any] = TrackMemory) -> System:
    backbone = Blocks()
    torch.manual_seed(1)
    head = SamTrack(SamTrack.Config(heads=2, mlp=16, direction=direction), backbone.spec)
    head.mask_decoder.output_hypernetworks_mlps[0].layers[2].weight.data *= 30
    memories = {"tracks": memory(memory.Config(), backbone.spec)}
    return System(backbone, {"tracks": head}, memories).eval()


def predict(system: System, video: Any, queries: Queries) -> Tracks:
    view = exact(SIZE, SIZE)
    sink = MemorySink(view, "video", video.frame_count, 2**24)
    for part in stream(system, video, view, StreamConfig(), queries):
        sink.put(part)
    tracks = Predictions(sink.whole).tracks
    assert isinstance(tracks, Tracks)
    return tracks


def points(*frames: int) -> Queries:
    xy = torch.rand(1, len(frames), 2, generator=torch.Generator().manual_seed(2)) * torch.tensor(SIZE[::-1])
    return Queries(torch.tensor([frames]), xy)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("memory", [TrackMemory, Chain])
def test_any_length(frames: int, memory: type[Any]) -> None:
    tracks = predict(system(memory=memory), MovingTexture(0, frames), points(0, frames // 2, frames - 1))
    first = torch.tensor([0, frames // 2, frames - 1])
    assert torch.equal(tracks.live[0], torch.arange(frames)[:, None] >= first)
    for tensor in (tracks.xy, tracks.visibility, tracks.depth):
        assert tensor is not None
        assert tensor[tracks.live].isfinite().all()


def test_without_a_memory_a_track_ends_with_its_last_window() -> None:
    """The query in frame 9 is in the windows that start at 0 and 8, which end with frame 23."""
    tracks = predict(system(memory=Nothing), MovingTexture(0, 40), points(9))
    assert tracks.live[0, :, 0].nonzero().flatten().tolist() == list(range(9, 24))


def test_backward_is_forward_in_the_reversed_video() -> None:
    video, queries = MovingTexture(0, 36), points(35, 20, 9, 0)
    mirrored = Queries(35 - queries.frame, queries.xy)
    backward = predict(system("backward"), video, queries)
    forward = predict(system("forward"), Reversed(video), mirrored)
    for name, tensor in backward.tensors().items():
        assert torch.equal(tensor.flip(1)[forward.live], forward.tensors()[name][forward.live]), name
    assert torch.equal(backward.live.flip(1), forward.live)
    assert float(forward.xy[0, :, 0].std(0).max()) > 0.1  # it moves


def test_both_directions_speak_about_every_frame() -> None:
    video, queries = MovingTexture(0, 36), points(35, 20, 9, 0)
    both, forward, backward = (predict(system(way), video, queries) for way in ("both", "forward", "backward"))
    assert both.live.all()
    behind = torch.arange(36)[:, None] < queries.frame[0]
    for name in ("xy", "visibility", "depth"):
        tensors = both.tensors()[name][0], forward.tensors()[name][0], backward.tensors()[name][0]
        assert torch.equal(tensors[0][~behind], tensors[1][~behind])
        assert torch.equal(tensors[0][behind], tensors[2][behind])


def test_groups_of_points_are_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    video, queries = MovingTexture(0, 24), points(0, 3, 9, 17, 23, 5, 5)
    whole = predict(system(), video, queries)
    monkeypatch.setattr("fourd_core.tracking.group_size", lambda head, clip: 3)
    parts = predict(system(), video, queries)
    torch.testing.assert_close(parts.xy[parts.live], whole.xy[whole.live], atol=1e-3, rtol=0)
    torch.testing.assert_close(parts.visibility[parts.live], whole.visibility[whole.live], atol=1e-5, rtol=0)
