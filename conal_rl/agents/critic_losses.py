"""The losses of a critic, and the values of its outputs: squared error, or HL-Gauss bins."""

import math

import torch
from torch import Tensor, nn


class SquaredError(nn.Module):
    """Half the squared TD error of one output."""

    outputs = 1

    def value(self, outputs: Tensor) -> Tensor:
        """Return the values `(...)` of outputs `(..., 1)`."""
        return outputs.squeeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every entry, `(...)`."""
        return 0.5 * (outputs.squeeze(-1) - target).square()


class HLGauss(nn.Module):
    """Cross-entropy against a Gaussian histogram of the target.

    Farebrother et al., "Stop Regressing" (ICML 2024), section 3.1: the target is a normal
    distribution around the TD target with a standard deviation of 0.75 bins, cut off at the ends
    of the support. The value is the expectation over the bins' centres. Targets beyond the centres
    of the outer bins are clamped to them.

    With `linear_to` (ours) the bins have equal widths in `u = asinh(value / linear_to)`. Below
    `linear_to` they have about one width. Above it their width is a fixed share of the value, so
    that small and hundredfold returns are both resolved. For Gaussian noise, `E[sinh(u + noise)]
    = exp(sigma^2 / 2) sinh(u)`. Dividing by that factor makes the histogram's expectation equal to
    the target; otherwise the difference would add up in bootstrapping.

    Args:
        bins: number of bins.
        low, high: the support, in units of the scaled return.
        linear_to: see above; None for bins of equal width.

    Raises:
        ValueError: the support is empty, or there is only one bin.
    """

    edges: Tensor  # (bins + 1,), equally spaced; of asinh(value / linear_to), or of values
    centres: Tensor  # (bins,), in units of the value

    def __init__(
        self,
        bins: int,
        low: float,
        high: float,
        linear_to: float | None = None,
        sigma_in_bins: float = 0.75,
    ):
        super().__init__()
        if bins < 2 or not low < high or (linear_to is not None and linear_to <= 0):
            raise ValueError(
                f"HLGauss: got {bins} bins from {low} to {high}, linear to {linear_to}, expected 2 "
                "or more, the lower end first, and linear_to above 0 or None"
            )
        self.outputs, self.linear_to = bins, linear_to
        if linear_to is not None:
            low, high = math.asinh(low / linear_to), math.asinh(high / linear_to)
        width = (high - low) / bins
        sigma = sigma_in_bins * width
        self.scale = math.sqrt(2) * sigma
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float32)
        centres = (edges[:-1] + edges[1:]) / 2
        self.bounds = float(centres[0]), float(centres[-1])
        if linear_to is not None:  # the second factor is that of the uniform bin
            smear = math.exp(sigma**2 / 2) * math.sinh(width / 2) / (width / 2)
            centres = linear_to * centres.sinh() / smear
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", centres, persistent=False)

    def value(self, outputs: Tensor) -> Tensor:
        """Return the values `(...)` of logits `(..., bins)`."""
        return outputs.softmax(-1) @ self.centres

    def bias_of_zero(self) -> Tensor:
        """Return logits `(bins,)` of about the value 0; no bin has a probability near 0."""
        return self.histogram(self.edges.new_zeros(())).log().clamp(min=-8)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy `(...)` of logits `(..., bins)` and broadcastable targets."""
        return -(self.histogram(target) * outputs.log_softmax(-1)).sum(-1)

    def outside(self, target: Tensor) -> Tensor:
        """Return which targets are outside of the support and so clamped: bool `(...)`."""
        place = self._place(target)
        return (place < self.edges[0]) | (place > self.edges[-1])

    def histogram(self, target: Tensor) -> Tensor:
        """Return the target's probability in every bin, `(..., bins)`."""
        centre = self._place(target).clamp(*self.bounds).unsqueeze(-1)
        cdf = torch.erf((self.edges - centre) / self.scale)
        mass = cdf[..., 1:] - cdf[..., :-1]
        return mass / (cdf[..., -1:] - cdf[..., :1])

    def _place(self, target: Tensor) -> Tensor:
        """Return values in the unit of the edges."""
        return target if self.linear_to is None else (target / self.linear_to).asinh()
