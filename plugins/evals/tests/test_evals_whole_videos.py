"""L4P's tasks measured on whole videos: a system that knows the truth, one that errs by so much, trivial rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fourd_evals.datasets_sintel import Sintel
from fourd_evals.known_texture import SIZE, STEP, KnownTexture, KnownTextures, knowing_system
from fourd_evals.l4p_eval import CameraPoses, MotionMasks, VideoDepth, VideoFlow
from fourd_evals.l4p_tracks import PointTracks
from fourd_evals.looks import FirstFrames
from fourd_evals.trivial_answers import MeanDisparity, chained
from fourd_evals.whole_videos import with_heads
from torch import Tensor

from fourd_core.errors import RecipeError
from fourd_core.interfaces import Dataset, Split, Video
from fourd_core.media.views import ViewConfig
from fourd_core.recipe import ComponentConfig, parse
from fourd_core.testing.miniature import Miniature, Textures

METRICS: tuple[tuple[Any, dict[str, Any], dict[str, float]], ...] = (
    (VideoDepth, {}, {"AbsRel": 0, "delta1": 1, "RMSE": 0}),
    (VideoDepth, {"protocol": "monst3r", "pixels": "view"}, {"AbsRel": 0, "delta1": 1, "RMSE": 0}),
    (VideoDepth, {"protocol": "probe3d", "pixels": "view"}, {"delta1": 1, "RMSE": 0}),
    (VideoFlow, {}, {"EPE": 0, "EPE<1": 100, "Fl": 0}),
    (MotionMasks, {}, {"IoU": 100, "IoU, mean of frames": 100}),
    (CameraPoses, {}, {"ATE (m)": 0, "RPE trans (m)": 0, "RPE rot (deg)": 0, "AUC@30": 100}),
    (PointTracks, {}, {"2D-AJ": 100, "APD": 100, "OA": 100, "3D-AJ": 100, "3D-APD": 100, "3D-OA": 100}),
)


def _rows(metric: Any, error: float, data: Dataset | None = None) -> dict[str, dict[str, Any]]:
    result = metric.measure(knowing_system(error), data or KnownTextures())
    return {str(row["system"]): row for row in result.rows}


class _Exact(KnownTextures):
    """Whose view is twice the video."""

    view = ViewConfig(view="resize", height=2 * SIZE[0], width=2 * SIZE[1])


@pytest.mark.parametrize(("cls", "keys", "best"), METRICS)
def test_the_truth_scores_best(cls: Any, keys: dict[str, Any], best: dict[str, float]) -> None:
    metric = cls(cls.Config(**keys))
    system, data = knowing_system(), _Exact()
    metric.prepare(system, data)
    result = metric.measure(system, data)
    row = {name: value for name, value in result.rows[0].items() if name != "system"}
    assert row == pytest.approx(best, abs=2e-3)
    worse = cls(cls.Config(**keys)).measure(knowing_system(0.3), data)
    assert result.protocol == worse.protocol
    if cls is not VideoDepth or keys.get("protocol") == "probe3d":  # what the other alignments take away
        assert worse.score < result.score - 1e-3


def test_errors_are_measured_in_the_pixels_asked_for() -> None:
    length = math.hypot(*STEP)
    view = VideoFlow(VideoFlow.Config()).measure(knowing_system(0.5), _Exact())
    video = VideoFlow(VideoFlow.Config(pixels="video")).measure(knowing_system(0.5), _Exact())
    assert view.rows[0]["EPE"] == pytest.approx(0.5 * length * 2, rel=1e-5)
    assert video.rows[0]["EPE"] == pytest.approx(0.5 * length, rel=1e-5)
    assert view.score == pytest.approx(-0.5 * length * 2, rel=1e-5)


def test_only_the_first_frame_of_a_video_has_no_flow() -> None:
    metric = VideoFlow(VideoFlow.Config())
    look = next(metric._looks(knowing_system(), _Exact()))
    assert not look.truth("flow", 4, 2).isnan().any()
    first = look.truth("flow", 0, 2)
    assert first[0].isnan().all() and first[1, :, 0, 0].tolist() == pytest.approx([-2 * step for step in STEP])


def test_trivial_rows() -> None:
    """What they must be on the miniature."""
    flow = _rows(VideoFlow(VideoFlow.Config(trivial=True, pixels="video")), 0)
    assert flow["zero flow"]["EPE"] == pytest.approx(math.hypot(*STEP), rel=1e-5)
    if "DIS flow" in flow:
        assert flow["DIS flow"]["EPE"] < 0.1
    masks = _rows(MotionMasks(MotionMasks.Config(trivial=True)), 0)
    assert masks["everything moves"]["IoU"] == pytest.approx(50, abs=0.1)
    cameras = _rows(CameraPoses(CameraPoses.Config(trivial=True)), 0)
    assert cameras["static camera"]["ATE (m)"] > 0.3 and cameras["static camera"]["AUC@30"] == 0
    tracks = _rows(PointTracks(PointTracks.Config(trivial=True)), 0)
    assert tracks["static points"]["2D-AJ"] < 5
    if "chained DIS flow" in tracks:
        assert tracks["chained DIS flow"]["APD"] > 95


def test_trivial_depths_are_aligned_too() -> None:
    depth = _rows(VideoDepth(VideoDepth.Config(trivial=True)), 0.5)
    ours, constant, mean = (depth[name]["AbsRel"] for name in ("this system", "constant depth", "mean depth map"))
    assert ours < 1e-5 < mean < constant < 0.2
    capped = _rows(VideoDepth(VideoDepth.Config(trivial=True, cap=2.5)), 0.5)
    assert capped["constant depth"]["RMSE"] < depth["constant depth"]["RMSE"]


def test_the_mean_disparity_leaves_out_what_is_unknown() -> None:
    mean = MeanDisparity()
    truth = torch.full((2, 1, 64, 64), 2.0)
    truth[1], truth[:, :, :, :8] = 4.0, torch.nan
    truth[0, 0, 0, 0] = 8.0
    mean.add(truth)
    answer = mean.map()
    assert float(answer[10, 20]) == pytest.approx(0.375) and float(answer[0, 0]) == pytest.approx(0.125)
    assert float(answer[5, 5]) == pytest.approx(0.375, abs=1e-3)


def test_points_are_carried_by_flow_from_their_query_on() -> None:
    flows = torch.zeros(3, 2, 2, 6, 8)
    flows[:, 0, 0], flows[:, 0, 1], flows[:, 1] = 1.0, -0.5, 9.0
    xy = torch.tensor([[1.5, 3.5], [6.5, 2.5]])
    places = chained(iter(flows), torch.tensor([0, 2]), xy, 4)
    assert places[0].tolist() == [[1.5, 3.5], [2.5, 3.0], [3.5, 2.5], [4.5, 2.0]]
    assert places[1].tolist() == [[6.5, 2.5]] * 3 + [[7.5, 2.0]]


def test_fewer_frames_videos_and_points() -> None:
    short = FirstFrames(KnownTexture(), 6)
    assert short.frame_count == 6 and torch.equal(short.read([5]), KnownTexture().read([5]))
    assert copy.copy(short).frame_count == 6
    with pytest.raises(AttributeError):
        _ = short.queries
    metric = PointTracks(PointTracks.Config(frames=6, points=2, videos=1))
    result = metric.measure(knowing_system(), KnownTextures())
    assert result.protocol["videos"] == 1 and result.protocol["frames"] == 6
    assert result.rows[0]["2D-AJ"] == pytest.approx(100)


class _Stated(KnownTexture):
    """It says which points are asked for, and that the last one is not known late."""

    queries = torch.tensor([[3.0, 11.5, 37.5], [0.0, 20.25, 30.0], [2.0, 44.0, 44.0], [0.0, 60.0, 20.0]])


class _StatedSet(KnownTextures):
    def videos(self, split: Split) -> Sequence[Video]:
        return [_Stated()]


def test_a_data_set_may_state_its_queries() -> None:
    rows = _rows(PointTracks(PointTracks.Config()), 0, _StatedSet())
    assert rows["this system"]["2D-AJ"] == pytest.approx(100)
    # In 3D the frames before a query count, of which a forward tracker says nothing.
    assert rows["this system"]["3D-AJ"] < 100


def test_only_what_is_measured_runs() -> None:
    system = knowing_system()
    part = with_heads(system, ["depth"])
    assert list(part.heads) == ["depth"] and len(system.heads) == 5
    assert part.backbone is system.backbone and part.heads["depth"] is system.heads["depth"]
    calls: list[Tensor] = []
    system.heads["tracks"].register_forward_hook(lambda *_: calls.append(torch.empty(0)))
    VideoDepth(VideoDepth.Config()).measure(system, KnownTextures())
    assert not calls


def test_what_is_missing_is_said() -> None:
    flow = VideoFlow(VideoFlow.Config())
    assert not flow.available(Miniature(), Textures())
    assert flow.available(Miniature(), KnownTextures())
    with pytest.raises(RecipeError, match="no video of the data has a known truth of the kind 'flow'"):
        flow.measure(knowing_system(), Textures())
    with pytest.raises(RecipeError, match="not one head for flow but none"):
        flow.prepare(Miniature(), KnownTextures())
    with pytest.raises(RecipeError, match=r"no \[heads.other\]"):
        VideoFlow(VideoFlow.Config(head="other")).prepare(knowing_system(), KnownTextures())


def test_a_recipe_names_the_data_and_the_paper() -> None:
    recipe = parse("""
        [backbone]
        use = "toy_patches"
        [data]
        video = "clip.mp4"
        [stages.evaluate]
        job = "evaluate"
        [stages.evaluate.metrics.depth]
        use = "video_depth"
        cap = 70.0
        paper = "Sintel"
        data = { use = "video", video = "other.mp4" }
    """)
    section = recipe.stages["evaluate"].config.metrics["depth"]
    metric = VideoDepth(section.config)
    assert metric.available(Miniature(), Textures())
    unnamed = ComponentConfig("datasets", "sintel", Sintel.Config())
    assert not VideoDepth(VideoDepth.Config(data=unnamed)).available(Miniature(), Textures())
    data = metric.dataset(Textures())
    assert type(data).__name__ == "VideoFiles" and metric.dataset(Textures()) is data
    printed = {str(row["system"]): row for row in metric._paper()}
    assert printed["L4P (paper, table 1)"]["AbsRel"] == 0.263
    for cls, keys, column in (
        (VideoFlow, {"paper": "Spring"}, "EPE<1"),
        (MotionMasks, {"paper": "VKITTI"}, "IoU"),
        (PointTracks, {"paper": "Aria"}, "2D-AJ"),
        (PointTracks, {"paper": "Overall"}, "OA"),
        (PointTracks, {"paper": "Overall", "table": "4"}, "3D-APD"),
    ):
        assert all(column in row for row in list(cls(cls.Config(**keys))._paper())[-1:])


def test_cameras_that_go_nowhere_are_left_out() -> None:
    """Of one frame, say: every trajectory fits."""
    result = CameraPoses(CameraPoses.Config(frames=1, trivial=True)).measure(knowing_system(error=0.2), KnownTextures())
    assert any("left out" in note for note in result.notes)
    assert not any(isinstance(value, float) for row in result.rows for value in row.values())
