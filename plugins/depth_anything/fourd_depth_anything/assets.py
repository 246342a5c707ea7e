"""Depth Anything V2's published checkpoints, as `fourd weights` knows them."""

from fourd_core.weights.assets import WeightsAsset

SOURCE = "Yang et al., Depth Anything V2, NeurIPS 2024; github.com/DepthAnything/Depth-Anything-V2"
SIGNATURE = ("pretrained.patch_embed.proj.", "depth_head.scratch.output_conv2.")


def _asset(size: str, word: str, parameters: str, noncommercial: bool, published: bool = True) -> WeightsAsset:
    file_name = f"depth_anything_v2_vit{size}.pth"
    return WeightsAsset(
        name=f"depth_anything_v2_vit{size}",
        summary=f"Depth Anything V2 {word}: relative disparity, ViT-{size.upper()} ({parameters} parameters)",
        licence="CC-BY-NC-4.0" if noncommercial else "Apache-2.0",
        noncommercial=noncommercial,
        licence_note="" if published else "Announced by its authors, and not published so far: name a file by --from.",
        source=SOURCE,
        file_name=file_name,
        url=f"hf://depth-anything/Depth-Anything-V2-{word}/{file_name}" if published else None,
        signature=SIGNATURE,
    )


VITS = _asset("s", "Small", "24.8 million", noncommercial=False)
VITB = _asset("b", "Base", "97.5 million", noncommercial=True)
VITL = _asset("l", "Large", "335.3 million", noncommercial=True)
VITG = _asset("g", "Giant", "1.3 billion", noncommercial=True, published=False)
