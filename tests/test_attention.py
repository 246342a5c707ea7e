"""The attention function against its definition."""

from __future__ import annotations

import pytest
import torch

from fourd_core.kernels.attention import attention


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.einsum("bhnm,bhme->bhne", (scale * torch.einsum("bhnd,bhmd->bhnm", q, k)).softmax(-1), v)


def random_qkv(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)
    q, k, v = (torch.randn(shape, generator=make, dtype=dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(("scale", "factor"), [(None, 4**-0.5), (0.3, 0.3)])
def test_equals_its_definition(scale: float | None, factor: float) -> None:
    q, k, v = random_qkv()
    torch.testing.assert_close(attention(q, k, v, scale), definition(q, k, v, factor), rtol=1e-12, atol=1e-12)


def test_float32_stays_close() -> None:
    q, k, v = random_qkv(torch.float32)
    answer = attention(q, k, v)
    assert answer.dtype == torch.float32
    expected = definition(q.double(), k.double(), v.double(), 0.5).float()
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)


def test_gradients() -> None:
    inputs = [x[:1, :1].clone().requires_grad_() for x in random_qkv()]
    assert torch.autograd.gradcheck(attention, tuple(inputs))


def test_order_of_keys_does_not_matter() -> None:
    q, k, v = random_qkv()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(attention(q, k, v), attention(q, k[:, :, order], v[:, :, order]))


def test_runs_on_the_meta_device() -> None:
    q, k, v = (x.to("meta") for x in random_qkv())
    assert attention(q, k, v).shape == (2, 3, 5, 6)


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_belong_together() -> None:
    q, k, v = random_qkv()
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 4\), \(2, 3, 7, 4\) and \(2, 3, 6, 6\)"):
        attention(q, k, v[:, :, :6])
    with pytest.raises(ValueError, match="b h n d"):
        attention(q[0], k[0], v[0])
