"""Every reader in a mixture, which calls sequences by longer names."""

from __future__ import annotations

import pytest
import torch
from fourd_evals.datasets_mixture import Mixture

from fourd_core import registry
from fourd_core.interfaces import AnnotatedVideo
from fourd_core.recipe import ComponentConfig

READERS = ("bonn", "kitti_depth", "kitti_flow", "nyu_depth", "scannet", "sintel", "spring", "tapvid", "tapvid3d", "tum",
           "vkitti2")  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_sequence_in_a_mixture_is_the_same(name: str) -> None:
    reader = registry.load("datasets", name)
    config = reader.example()
    alone = reader(config).videos("all")[0]
    mixed = Mixture(Mixture.Config(sets={"one": ComponentConfig("datasets", name, config)})).videos("all")[0]
    assert isinstance(mixed, AnnotatedVideo) and mixed.key == f"one/{alone.key}"
    frames = list(range(min(2, alone.frame_count)))
    assert torch.equal(mixed.read(frames), alone.read(frames))
    truth, wanted = mixed.truth(frames), alone.truth(frames)
    assert set(truth) == set(wanted) == set(mixed.known)
    for what in wanted:
        for field, values in wanted[what].tensors().items():
            torch.testing.assert_close(truth[what].tensors()[field], values, rtol=0, atol=0, equal_nan=True)
