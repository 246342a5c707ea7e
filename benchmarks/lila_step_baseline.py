"""A training step of LILA in the straightforward form, as the reference code does it: for `benchmarks/lila_step.py`.

Line by line, with every intermediate map in memory: attention matrices, the 24 neighbours of each pixel side by side in
PAMR, the 1x1 convolutions after the enlargement, full-size maps for each term of the loss. Weights are taken from a
dictionary by the official names. Source: google-research/lila (dpt_lila.py, func_utils.py); facebookresearch/dinov2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

HEADS, PATCH, TAPS, POOL = 6, 14, (2, 5, 8, 11), 32
STAGES = ((20, 56), (10, 112), (5, None))
"""PAMR's rounds and sizes; None: the view's own."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Weights = Mapping[str, Tensor]


def encoder(w: Weights, views: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c y x"]]:
    """DINOv2's normalised patch tokens at four layers."""
    mean, deviation = (views.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    x = F.conv2d((views - mean) / deviation, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    (b, c, rows, columns), side = x.shape, math.isqrt(w["pos_embed"].shape[1] - 1)
    table = w["pos_embed"][:, 1:].mT.unflatten(-1, (side, side))
    factors = (rows + 0.1) / side, (columns + 0.1) / side
    table = F.interpolate(table, scale_factor=factors, mode="bicubic").flatten(2).mT
    x = torch.cat([w["cls_token"].expand(b, -1, -1), x.flatten(2).mT], 1)
    x = x + torch.cat([w["pos_embed"][:, :1], table], 1)
    maps = []
    for i in range(12):
        p = {key.removeprefix(f"blocks.{i}."): value for key, value in w.items() if key.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (c,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        y = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
        q, k, v = y.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).flatten(2), p["attn.proj.weight"], p["attn.proj.bias"])
        x = x + p["ls1.gamma"] * y
        y = F.layer_norm(x, (c,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        y = F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        x = x + p["ls2.gamma"] * y
        if i in TAPS:
            normed = F.layer_norm(x, (c,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 1:]
            maps.append(normed.mT.unflatten(-1, (rows, columns)))
    return maps


def decoder(w: Weights, maps: list[Tensor], size: tuple[int, int]) -> Float[Tensor, "b d h w"]:
    """DPT's, then the normalisation of every pixel."""

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, w[f"latent_head.{name}.weight"], w.get(f"latent_head.{name}.bias"), **how)

    def unit(x: Tensor, name: str) -> Tensor:
        return conv(F.relu(conv(F.relu(x), f"{name}.conv1", padding=1)), f"{name}.conv2", padding=1) + x

    def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    levels = []
    for i, x in enumerate(maps):
        x, layer = conv(x, f"projects.{i}"), f"latent_head.resize_layers.{i}"
        if i < 2:
            x = F.conv_transpose2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=(4, 2)[i])
        elif i == 3:
            x = conv(x, "resize_layers.3", stride=2, padding=1)
        levels.append(conv(x, f"scratch.layer{i + 1}_rn", padding=1))
    fused = None
    for n in (4, 3, 2, 1):
        level, name = levels[n - 1], f"scratch.refinenet{n}"
        fused = level if fused is None else fused + unit(level, f"{name}.resConfUnit1")
        finer = tuple(levels[n - 2].shape[-2:]) if n > 1 else (2 * level.shape[-2], 2 * level.shape[-1])
        fused = conv(enlarged(unit(fused, f"{name}.resConfUnit2"), finer), f"{name}.out_conv")
    x = enlarged(conv(fused, "scratch.output_conv1", padding=1), size)
    x = conv(F.relu(conv(x, "scratch.output_conv2.0", padding=1)), "scratch.output_conv2.2")
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], w["fnorm.weight"], w["fnorm.bias"], 1e-5).movedim(-1, 1)


def around(maps: Float[Tensor, "b c h w"], centre: bool) -> Float[Tensor, "b c n h w"]:
    """The neighbours of each pixel at distances 1, 3 and 5, side by side."""
    offsets = [(i, j) for i in range(3) for j in range(3) if centre or (i, j) != (1, 1)]
    gather = maps.new_zeros(len(offsets), 1, 3, 3)
    for n, (i, j) in enumerate(offsets):
        gather[n, 0, i, j] = 1
    planes = maps.flatten(0, 1)[:, None]
    seen = [F.conv2d(F.pad(planes, (d,) * 4, mode="replicate"), gather, dilation=d) for d in (1, 3, 5)]
    return torch.cat(seen, 1).unflatten(0, maps.shape[:2])


@torch.no_grad()
def refined(maps: Float[Tensor, "b c y x"], guide: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
    """PAMR."""
    for iterations, side in STAGES:
        size = (side, side) if side else tuple(guide.shape[-2:])
        small, maps = (F.interpolate(m, size, mode="bilinear", align_corners=True) for m in (guide, maps))
        contrast = (small[:, :, None] - around(small, False)).abs()
        weights = (-contrast / (1e-5 + 0.05 * around(small, True).std(2, keepdim=True))).mean(1).softmax(1)
        for _ in range(iterations):
            maps = (around(maps, False) * weights[:, None]).sum(2)
    return maps


def trusted(flow: Float[Tensor, "b 2 h w"], back: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where the two flows, in half frames, lead back to where they started."""
    h, w = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h).to(flow), torch.arange(w).to(flow), indexing="ij")
    x, y = x + flow[:, 0] * w / 2, y + flow[:, 1] * h / 2
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], -1)
    met = F.grid_sample(back, grid, padding_mode="border", align_corners=True)
    return ((flow + met).square().sum(1, keepdim=True).sqrt() < 0.05 * math.log(2)).to(flow)


def cut(maps: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
    """Seen in a view."""
    grid = F.affine_grid(theta.to(maps), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, align_corners=False)


def standardised(query: Tensor, context: Tensor) -> list[Tensor]:
    """Zero mean and unit deviation, of both together."""
    both = torch.stack([query, context])
    return [(maps - both.mean()) / (1e-3 + both.std()) for maps in (query, context)]


def step(
    encoder_weights: Weights,
    decoder_weights: Weights,
    views: Float[Tensor, "b 2 3 v v"],
    theta: Float[Tensor, "b 2 2 3"],
    flow: Float[Tensor, "b 2 2 v v"],
    disparity: Float[Tensor, "b 2 1 v v"],
    chosen: Tensor,
) -> dict[str, Tensor]:
    """The losses of pairs (query, context).

    Args:
        flow: in pixels of the whole frames, there and back; `disparity` likewise: what the teachers said.
        chosen: the distilled channels, `b k`.
    """
    b, _, _, size, _ = views.shape
    there, back = (2 * flow / size).unbind(1)
    depth = torch.log(1 + 1 / (0.01 * disparity + 0.1)) / math.log(11)
    near = (depth < 0.9).to(depth)
    agree = trusted(there, back), trusted(back, there)
    query, context = theta.unbind(1)
    trust = cut(torch.cat([agree[0], agree[0], near[:, 0]], 1), query)
    context_trust = cut(torch.cat([agree[1], agree[1], near[:, 1]], 1), context)
    with torch.no_grad():
        maps = encoder(encoder_weights, views.flatten(0, 1))
    features = decoder(decoder_weights, maps, (size, size))
    features = torch.cat([features, torch.ones_like(features[:, :1])], 1).unflatten(0, (b, 2))
    coarse = maps[-1].unflatten(0, (b, 2)).transpose(1, 2)[torch.arange(b)[:, None], chosen].transpose(1, 2)
    distilled = F.normalize(refined(coarse.flatten(0, 1), views.flatten(0, 1)), dim=1).unflatten(0, (b, 2))
    flows = standardised(cut(there, query), -cut(back, context))
    depths = standardised(cut(depth[:, 0], query), cut(depth[:, 1], context))
    target, known = (torch.cat(m, 1) for m in zip(flows, depths, distilled.unbind(1), strict=True))

    x, y, c = (F.adaptive_avg_pool2d(m, POOL).flatten(2).mT for m in (features[:, 1], known, context_trust))
    c = c.prod(-1)
    weighted = (torch.where(c < 0.5, 0, c)[..., None] * x).mT / POOL**2
    readout = torch.linalg.solve(weighted @ x + 0.1 * torch.eye(x.shape[-1]).to(x), weighted @ y)
    predicted = torch.einsum("bdk,bdhw->bkhw", readout, features[:, 0])

    counted = torch.cat([trust, torch.ones_like(target[:, 3:])], 1) > 0
    l1, edge = (predicted - target).abs()[counted].mean(), predicted.new_zeros(())
    for axis in (-1, -2):
        found, wanted = predicted.diff(dim=axis).abs(), target.diff(dim=axis).abs()
        both = counted.narrow(axis, 0, size - 1) & counted.narrow(axis, 1, size - 1)
        edge = edge + ((1 - torch.exp(-wanted / 0.1)) * (found - wanted).abs())[both].mean()
    return {"loss": l1 + edge, "l1": l1, "edge": edge}
