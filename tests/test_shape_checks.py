"""Annotations are checked under test (the repository's conftest.py): a wrong shape or dtype is refused at once."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT
from jaxtyping import TypeCheckError

from fourd_core.data import Clip, CueMaps
from fourd_core.kernels.ridge import weighted_ridge


def test_arguments_that_do_not_belong_together() -> None:
    features, targets, weights = torch.rand(2, 5, 3), torch.rand(2, 5, 1), torch.rand(2, 5)
    assert weighted_ridge(features, targets, weights, 1).shape == (2, 3, 1)
    with pytest.raises(TypeCheckError, match="parameter 'weights'"):
        weighted_ridge(features, targets, weights[:, 1:], 1)


def test_fields_that_do_not_belong_together() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'valid'"):
        CueMaps(torch.rand(1, 2, 3, 4, 5), "map", torch.ones(1, 2, 3, 4, 5, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="parameter 'frames'"):
        Clip(torch.zeros(1, 2, 3, 4, 5, dtype=torch.uint8))


def test_every_module_that_may_hold_tensors_is_checked() -> None:
    for folder in (ROOT, *ROOT.glob("plugins/*")):
        for file in folder.glob("fourd_*/**/[a-z]*.py"):
            if file.parent.name in ("recipe", "report"):
                continue
            spec = find_spec(".".join(file.relative_to(folder).with_suffix("").parts))
            assert spec
            assert type(spec.loader).__module__ == "jaxtyping._import_hook", file
