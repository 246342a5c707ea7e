"""One rendered clip as several: mirrored, backwards, in other colours; its truth stays exact."""

from __future__ import annotations

import itertools

import attrs
import torch
from jaxtyping import Bool
from torch import Tensor

from fourd_synth.draws import Draws
from fourd_synth.truths import Scene

ORDERS = torch.tensor(list(itertools.permutations(range(3))))


def vary(scene: Scene, draws: Draws, *, reuse: bool) -> Scene:
    """Other colours for each clip; where scenes are used again, half of them mirrored and half of them backwards."""
    device = scene.colour.device
    order = ORDERS[torch.from_numpy(draws.integer(stop=len(ORDERS)))].to(device)
    gain = torch.from_numpy(draws.uniform(3, low=0.8, high=1.0)).to(scene.colour)
    colour = scene.colour.gather(2, order[:, None, :, None, None].expand_as(scene.colour))
    scene = attrs.evolve(scene, colour=colour * gain[:, None, :, None, None])
    if not reuse:
        return scene
    mirror, back = (torch.from_numpy(draws.chance(0.5)).to(device) for _ in range(2))
    scene = _where(mirror, mirrored(scene), scene)
    return _where(back, backwards(scene), scene)


def mirrored(scene: Scene) -> Scene:
    """Left and right exchanged, in the picture and in the world."""
    width = scene.colour.shape[-1]
    side = scene.flow.new_tensor([-1.0, 1.0, 1.0])
    world = torch.ones_like(scene.world_from_cam)
    world[..., 0, 1:] = world[..., 1:, 0] = -1
    intrinsics, xy = scene.intrinsics.clone(), scene.xy.clone()
    intrinsics[..., 0, 2] = width - intrinsics[..., 0, 2]
    xy[..., 0] = width - xy[..., 0]
    return attrs.evolve(
        scene,
        colour=scene.colour.flip(-1),
        depth=scene.depth.flip(-1),
        motion=scene.motion.flip(-1),
        slot=scene.slot.flip(-1),
        flow=scene.flow.flip(-1) * side[:2, None, None],
        occluded=scene.occluded.flip(-1),
        world_from_cam=scene.world_from_cam * world,
        intrinsics=intrinsics,
        xy=xy,
        at=scene.at * side,
    )


def backwards(scene: Scene) -> Scene:
    """The last frame first: the frame before is the one that was behind."""
    turned = scene.map(lambda tensor: tensor.flip(1))
    return attrs.evolve(turned, flow=turned.flow.flip(2), occluded=turned.occluded.flip(2), times=scene.times)


def _where(which: Bool[Tensor, " b"], yes: Scene, no: Scene) -> Scene:
    tensors = {
        field.name: torch.where(
            which.view(-1, *[1] * (getattr(no, field.name).ndim - 1)), getattr(yes, field.name), getattr(no, field.name)
        )
        for field in attrs.fields(Scene)
    }
    return Scene(**tensors)
