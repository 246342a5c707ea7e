"""The published checkpoints of RAFT and SEA-RAFT, as `fourd weights` knows them.

torchvision publishes the authors' RAFT weights again under its own names (V1) and weights that it trained itself (V2).
In the names: C Chairs, T Things, S Sintel, K KITTI, H HD1K, in the order of training.
"""

from fourd_core.weights.assets import WeightsAsset

_RAFT = "Teed and Deng, RAFT, ECCV 2020; github.com/princeton-vl/RAFT (download_models.sh)"
_SEA_RAFT = "Wang, Lipson and Deng, SEA-RAFT, ECCV 2024; github.com/princeton-vl/SEA-RAFT"
_TORCHVISION = "torchvision, models/optical_flow/raft.py"
_PYTORCH = "https://download.pytorch.org/models"
_HUB = "https://huggingface.co/MemorySlices"
_CODE_ONLY = (
    "The licence is that of the code; for the weights nothing is stated apart, and the data sets they were trained on "
    "have terms of their own, some for research alone."
)
_ON_DRIVE = (
    "The authors' Google Drive has it as {}. The licence is that of the code; the model's page may say more of the "
    "weights, and the data sets they were trained on have terms of their own, some for research alone."
)
_IN_A_ZIP = f"It is in the archive models.zip that the authors' download_models.sh fetches. {_CODE_ONLY}"

_TORCHVISION_KEYS = ("feature_encoder.convnormrelu.", "context_encoder.", "update_block.recurrent_block.")
_LARGE = (*_TORCHVISION_KEYS, "mask_predictor.")
_SMALL = (*_TORCHVISION_KEYS, "feature_encoder.layer1.0.convnormrelu3.")
_OFFICIAL_LARGE = ("fnet.conv1.", "cnet.conv1.", "update_block.gru.convz1.")
_OFFICIAL_SMALL = ("fnet.conv1.", "cnet.conv1.", "update_block.gru.convz.")
_SEA_RAFT_KEYS = ("fnet.conv1.", "cnet.conv1.", "init_conv.", "update_block.refine.")

LARGE_SKHT_V2 = WeightsAsset(
    name="raft_large_c_t_skht_v2",
    summary="RAFT large, trained by torchvision on Chairs, Things, then Sintel, KITTI, HD1K and Things",
    licence="BSD-3-Clause",
    licence_note=_CODE_ONLY,
    source=_TORCHVISION,
    file_name="raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    url=f"{_PYTORCH}/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    signature=_LARGE,
)
LARGE_SKHT_V1 = WeightsAsset(
    name="raft_large_c_t_skht_v1",
    summary="RAFT large, the authors' raft-sintel under torchvision's names",
    licence="BSD-3-Clause",
    licence_note=_CODE_ONLY,
    source=_TORCHVISION,
    file_name="raft_large_C_T_SKHT_V1-0b8c9e55.pth",
    url=f"{_PYTORCH}/raft_large_C_T_SKHT_V1-0b8c9e55.pth",
    signature=_LARGE,
)
LARGE_V2 = WeightsAsset(
    name="raft_large_c_t_v2",
    summary="RAFT large, trained by torchvision on Chairs and Things",
    licence="BSD-3-Clause",
    licence_note=_CODE_ONLY,
    source=_TORCHVISION,
    file_name="raft_large_C_T_V2-1bb1363a.pth",
    url=f"{_PYTORCH}/raft_large_C_T_V2-1bb1363a.pth",
    signature=_LARGE,
)
SMALL_V2 = WeightsAsset(
    name="raft_small_c_t_v2",
    summary="RAFT small, trained by torchvision on Chairs and Things",
    licence="BSD-3-Clause",
    licence_note=_CODE_ONLY,
    source=_TORCHVISION,
    file_name="raft_small_C_T_V2-01064c6d.pth",
    url=f"{_PYTORCH}/raft_small_C_T_V2-01064c6d.pth",
    signature=_SMALL,
)
THINGS = WeightsAsset(
    name="raft_things",
    summary="RAFT large, trained by the authors on Chairs and Things",
    licence="BSD-3-Clause",
    licence_note=_IN_A_ZIP,
    source=_RAFT,
    file_name="raft-things.pth",
    signature=_OFFICIAL_LARGE,
)
SINTEL = WeightsAsset(
    name="raft_sintel",
    summary="RAFT large, trained by the authors on Chairs, Things, then Sintel, KITTI, HD1K and Things",
    licence="BSD-3-Clause",
    licence_note=_IN_A_ZIP,
    source=_RAFT,
    file_name="raft-sintel.pth",
    signature=_OFFICIAL_LARGE,
)
SMALL = WeightsAsset(
    name="raft_small",
    summary="RAFT small, trained by the authors on Chairs and Things",
    licence="BSD-3-Clause",
    licence_note=_IN_A_ZIP,
    source=_RAFT,
    file_name="raft-small.pth",
    signature=_OFFICIAL_SMALL,
)
SEA_RAFT_M = WeightsAsset(
    name="sea_raft_m",
    summary="SEA-RAFT M (L with 12 iterations), Tartan-C-T-TSKH432x960-M: LILA's flow teacher",
    licence="BSD-3-Clause",
    licence_note=_ON_DRIVE.format("Tartan-C-T-TSKH432x960-M.pth"),
    source=_SEA_RAFT,
    file_name="model.safetensors",
    url=f"{_HUB}/Tartan-C-T-TSKH432x960-M/resolve/main/model.safetensors",
    signature=(*_SEA_RAFT_KEYS, "fnet.layer3.5."),
)
SEA_RAFT_S = WeightsAsset(
    name="sea_raft_s",
    summary="SEA-RAFT S, Tartan-C-T-TSKH432x960-S",
    licence="BSD-3-Clause",
    licence_note=_ON_DRIVE.format("Tartan-C-T-TSKH432x960-S.pth"),
    source=_SEA_RAFT,
    file_name="model.safetensors",
    url=f"{_HUB}/Tartan-C-T-TSKH432x960-S/resolve/main/model.safetensors",
    signature=_SEA_RAFT_KEYS,
)
