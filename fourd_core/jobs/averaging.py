"""An exponential moving average of the weights that learn, which often predicts better than the last weights do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The running mean of named parameters over the steps: after each, `decay` times itself plus the rest of them.

    It begins with the parameters after the first step.

    Attributes:
        tensors: the mean of each parameter; empty before the first step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after a step."""
        now = [parameter.detach() for parameter in self.parameters.values()]
        if self.tensors:
            torch._foreach_lerp_(list(self.tensors.values()), now, 1 - self.decay)
        else:
            self.tensors = {name: value.clone() for name, value in zip(self.parameters, now, strict=True)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the means of a checkpoint."""
        self.tensors = {
            name: tensors[name].to(parameter.device, copy=True)
            for name, parameter in self.parameters.items()
            if name in tensors
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the parameters are their means; after it the same bits as before."""
        own = {name: self.parameters[name].detach().clone() for name in self.tensors}
        self._set(self.tensors)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.parameters[name].copy_(value)
