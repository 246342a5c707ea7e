"""Where half precision would hurt: arithmetic in the tensors' own precision, whatever autocast says around it."""

from __future__ import annotations

import torch


def own_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off for this device, the meta device included."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
