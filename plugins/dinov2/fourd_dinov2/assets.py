"""DINOv2's published checkpoints, as `fourd weights` knows them."""

from fourd_core.weights.assets import WeightsAsset

FOLDER = "https://dl.fbaipublicfiles.com/dinov2"


def _asset(size: str, parameters: str, registers: bool = False) -> WeightsAsset:
    network = f"dinov2_vit{size}14"
    file_name = f"{network}{'_reg4' if registers else ''}_pretrain.pth"
    return WeightsAsset(
        name=f"{network}{'_reg' if registers else ''}",
        summary=f"DINOv2 ViT-{size.upper()}/14{' with registers' if registers else ''} ({parameters} parameters)",
        licence="Apache-2.0",
        source="Oquab et al., DINOv2 (arXiv 2304.07193); github.com/facebookresearch/dinov2",
        file_name=file_name,
        url=f"{FOLDER}/{network}/{file_name}",
        signature=("cls_token", "mask_token", "patch_embed.proj.", "blocks.0.ls1.gamma"),
    )


VITS, VITB, VITL, VITG = (
    _asset("s", "22 million"),
    _asset("b", "87 million"),
    _asset("l", "304 million"),
    _asset("g", "1.1 billion"),
)
VITS_REG, VITB_REG = _asset("s", "22 million", registers=True), _asset("b", "87 million", registers=True)
VITL_REG, VITG_REG = _asset("l", "304 million", registers=True), _asset("g", "1.1 billion", registers=True)
