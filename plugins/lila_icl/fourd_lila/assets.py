"""LILA's published checkpoints, as `fourd weights` knows them."""

from fourd_core.weights.assets import WeightsAsset

FOLDER = "https://storage.googleapis.com/gresearch/lila-ckpts"


def _asset(name: str, file_name: str, encoder: str, channels: int, films: str) -> WeightsAsset:
    return WeightsAsset(
        name=name,
        summary=f"LILA: {channels} features per pixel on DINOv2 {encoder}, learned from {films}",
        licence="Apache-2.0 (of the code)",
        licence_note="It is that of the code they come with; none is stated for the weights. Their depth teacher, "
        "Depth Anything V2 Large, is CC-BY-NC-4.0. The encoder is DINOv2's.",
        source="LILA, CVPR 2026 (arXiv 2604.26488); google-research/lila",
        file_name=file_name,
        url=f"{FOLDER}/{file_name}",
        convert="fourd_lila.checkpoints:to_recipe",
        signature=("latent_head.scratch.output_conv2.", "fnorm."),
    )


VITS = _asset("lila_dinov2_vits14", "lila_dino2_s14_ytvos.pt", "ViT-S/14", 128, "YouTube-VOS")
VITB = _asset("lila_dinov2_vitb14", "lila_dino2_b14_ytvos.pt", "ViT-B/14", 192, "YouTube-VOS")
VITL = _asset("lila_dinov2_vitl14", "lila_dino2_l14_ytvos.pt", "ViT-L/14", 256, "YouTube-VOS")
VITL_KTS = _asset("lila_dinov2_vitl14_kts", "lila_dino2_l14_kts.pt", "ViT-L/14", 256, "Kinetics")
