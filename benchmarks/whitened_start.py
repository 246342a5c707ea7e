"""Where a training from nothing begins: python -m benchmarks.whitened_start RECIPE STAGE FILE.safetensors

All is random but the patch embedding, whose filters are the principal components of the stage's own patches, each
scaled to the same variance. A random embedding hands on the patches' mean colour and hardly anything else (of
normalised frames the first component has 60 times the variance of the fourth), and the small differences that show
motion drown: flow then begins to be learned later. Use: `fourd run RECIPE STAGE --set trained=FILE.safetensors`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import torch
from fourd_l4p.objective import L4P
from jaxtyping import Float
from torch import Tensor

from fourd_core.build import build_dataset, build_system
from fourd_core.checkpoint import save_tensors
from fourd_core.interfaces import Dataset, GeneratesClips
from fourd_core.recipe import load_recipe

BATCHES, CLIPS, FIRST = 6, 64, 5
"""So many generated clips are looked at, from this number on."""
SPREAD = 0.7
"""Standard deviation of each channel of the embedded patches."""
NOISE = 1e-4
"""Added to the variances: components below it are noise."""


def principal_filters(patches: Float[Tensor, "n d"], count: int) -> Float[Tensor, "count d"]:
    """The strongest principal components (about zero, not the mean), scaled so that each answers with SPREAD."""
    variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    strongest = slice(len(variances) - count, None)
    filters = components[:, strongest] / (variances[strongest] + NOISE).sqrt()
    return SPREAD * filters.flip(1).T


def main(recipe_path: str, stage: str, out: str) -> None:
    """Write the file."""
    recipe = load_recipe(recipe_path, ["weights=none"])
    system, data = build_system(recipe), build_dataset(recipe, stage)
    if not isinstance(data, GeneratesClips):
        sys.exit(f"[stages.{stage}.data] does not make its clips")
    objective = cast(L4P, system.objectives[stage])
    convolution = system.get_submodule("backbone.network.patch_embed.proj")
    weight = cast(Tensor, convolution.weight)
    sizes = list(weight.shape[2:])
    frames, crop = objective.windows.clip, objective.config.crop
    found = [_patches(data, frames, crop, number, sizes, system) for number in range(BATCHES)]
    with torch.no_grad():
        filters = principal_filters(torch.cat(found).double(), len(weight))
        weight.copy_(filters.view_as(weight))
        cast(Tensor, convolution.bias).zero_()
    state = {k: v for k, v in system.state_dict().items() if k.startswith(("backbone.", "heads.", "memories."))}
    save_tensors(Path(out), state)


def _patches(
    data: Dataset, frames: int, crop: int | None, number: int, sizes: list[int], system: torch.nn.Module
) -> Float[Tensor, "n d"]:
    numbers = torch.arange(CLIPS) + number * CLIPS + FIRST
    clip, _ = cast(GeneratesClips, data).generate("train", numbers, frames, crop, 0, torch.device("cpu"))
    video = system.backbone.normalise(clip.frames).transpose(1, 2)
    for axis, size in enumerate(sizes, 2):
        video = video.unfold(axis, size, size)
    flat: Tensor = video.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)
    return flat


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
