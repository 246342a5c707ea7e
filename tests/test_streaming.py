"""Windows cover every frame exactly once, for every length; memories are handed on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourd_core.data import Clip
from fourd_core.streaming import windows


@given(st.integers(1, 60), st.integers(1, 16), st.data())
def test_windows_finish_every_frame_once(frame_count: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    done = [place.start + i for place in windows(frame_count, window, stride) for i in range(place.final)]
    assert done == list(range(frame_count))
    assert all(place.frames <= window for place in windows(frame_count, window, stride))


def test_windows_go_on_where_they_were() -> None:
    whole = list(windows(50, 16, 8))
    assert list(windows(50, 16, 8, first=24)) == whole[3:]


@pytest.mark.usefixtures("unchecked")
def test_clip_refuses_frames_without_time() -> None:
    with pytest.raises(ValueError, match="b t c h w"):
        Clip(torch.zeros(1, 3, 8, 8))
