"""The published checkpoint of L4P, as `fourd weights` knows it."""

from fourd_core.weights.assets import WeightsAsset

L4P = WeightsAsset(
    name="l4p",
    summary="L4P: depth, flow, motion masks, cameras and 2D/3D tracks with VideoMAEv2 ViT-g (1.42 billion parameters)",
    licence="CC-BY-NC-SA-4.0",
    noncommercial=True,
    licence_note="The licence is that of the authors' release; fourd's own code is Apache-2.0.",
    source="Badki et al., L4P: Low-Level 4D Vision Perception Unified, 3DV 2026; research.nvidia.com/labs/lpr/l4p",
    file_name="l4p_depth_flow_2d3dtrack_camray_dynseg_v1.ckpt",
    convert="fourd_l4p.checkpoints:to_recipe",
    signature=("video_encoder.patch_embed.proj.", "task_heads."),
)
