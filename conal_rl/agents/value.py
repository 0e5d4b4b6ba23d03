"""How a critic's outputs are read as values and trained: squared error, or HL-Gauss bins."""

import math

import torch
from torch import Tensor, nn


class SquaredError(nn.Module):
    """One output, half the squared TD error."""

    outputs = 1

    def value(self, outputs: Tensor) -> Tensor:
        """`(..., 1)` to `(...)`."""
        return outputs.squeeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Loss of every entry, `(...)`."""
        return 0.5 * (outputs.squeeze(-1) - target).square()


class HLGauss(nn.Module):
    """Cross-entropy against a Gaussian histogram of the target.

    Farebrother et al., "Stop Regressing" (ICML 2024), section 3.1: the target is a normal
    distribution around the TD target with a standard deviation of 0.75 bins, cut off at the ends
    of the support; the value is the expectation over the bins' centres. Targets outside the
    support are clamped to it.

    Args:
        bins: number of bins.
        low, high: the support, in units of the scaled return.
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, bins: int, low: float, high: float, sigma_in_bins: float = 0.75):
        super().__init__()
        self.outputs = bins
        width = (high - low) / bins
        self.scale = math.sqrt(2) * sigma_in_bins * width
        edges = torch.linspace(low, high, bins + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", (edges[:-1] + edges[1:]) / 2, persistent=False)

    def value(self, outputs: Tensor) -> Tensor:
        """Logits `(..., bins)` to values `(...)`."""
        return outputs.softmax(-1) @ self.centres

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of every entry; logits `(..., bins)`, targets broadcastable to `(...)`."""
        return -(self.histogram(target) * outputs.log_softmax(-1)).sum(-1)

    def histogram(self, target: Tensor) -> Tensor:
        """The target's probability in every bin, `(..., bins)`."""
        centre = target.clamp(self.centres[0], self.centres[-1]).unsqueeze(-1)
        cdf = torch.erf((self.edges - centre) / self.scale)
        mass = cdf[..., 1:] - cdf[..., :-1]
        return mass / (cdf[..., -1:] - cdf[..., :1])
