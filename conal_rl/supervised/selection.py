"""Model selection: the weights of the lowest validation loss."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn


class BestWeights:
    """The weights of the lowest validation loss, on the CPU.

    Attributes:
        loss: the lowest validation loss so far.
        step: the update after which it was measured.
        looks_since: validation losses since then.
        weights: the network's weights at that step; empty before the first finite loss.
    """

    def __init__(self) -> None:
        self.loss, self.step, self.looks_since = math.inf, 0, 0
        self.weights: dict[str, Tensor] = {}

    def update(self, loss: float, step: int, network: nn.Module) -> None:
        """Copy the network's weights if `loss` is the lowest so far."""
        if loss < self.loss:
            self.loss, self.step, self.looks_since = loss, step, 0
            named = network.state_dict().items()
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in named}
        else:
            self.looks_since += 1

    def state(self) -> dict[str, Any] | None:
        """Return everything except `weights`, for a checkpoint; None before the first weights."""
        fields = {"loss": self.loss, "step": self.step, "looks_since": self.looks_since}
        return fields if self.weights else None

    def restore(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take over what `state` returned, and the weights."""
        self.loss, self.step = float(state["loss"]), int(state["step"])
        self.looks_since, self.weights = int(state["looks_since"]), weights
