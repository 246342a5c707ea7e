"""The disagreement of two flows against the definition, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fourd_core.geometry.flow import flow_disagreement


def by_definition(flow: Tensor, start: int, y: int, x: int) -> float:
    """Along one flow, then the other one bilinearly between pixels, held constant beyond the border."""
    h, w = flow.shape[-2:]
    u, v = flow[start, :, y, x].tolist()
    px, py = min(max(x + u, 0), w - 1), min(max(y + v, 0), h - 1)
    x0, y0 = min(int(px), max(w - 2, 0)), min(int(py), max(h - 2, 0))
    a, b = px - x0, py - y0
    back = flow[1 - start].double()
    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
    top = (1 - a) * back[:, y0, x0] + a * back[:, y0, x1]
    bottom = (1 - a) * back[:, y1, x0] + a * back[:, y1, x1]
    found = (1 - b) * top + b * bottom
    return math.hypot((u + float(found[0])) * 2 / w, (v + float(found[1])) * 2 / h)


@pytest.mark.parametrize(("h", "w"), [(7, 7), (5, 11), (9, 4), (6, 1)])
def test_every_pixel(h: int, w: int) -> None:
    flow = 3 * torch.randn(2, 2, 2, h, w, generator=torch.Generator().manual_seed(h))
    found = flow_disagreement(flow)
    assert found.shape == (2, 2, 1, h, w)
    wanted = [by_definition(pair, start, y, x) for pair in flow for start in (0, 1) for y in range(h) for x in range(w)]
    assert torch.allclose(found.flatten(), torch.tensor(wanted), atol=1e-5)


def test_a_shift_that_goes_back_agrees() -> None:
    flow = torch.zeros(1, 2, 2, 8, 12)
    flow[:, 0, 0], flow[:, 1, 0] = 2.5, -2.5
    assert flow_disagreement(flow).abs().max() < 1e-6
    flow[:, 1, 0] = 3.5
    assert torch.allclose(flow_disagreement(flow), torch.tensor(6 * 2 / 12))
