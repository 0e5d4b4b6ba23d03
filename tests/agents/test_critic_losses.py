"""Value losses against scipy's truncated normal and torch's own losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from conal_rl.agents.critic_losses import HLGauss, SquaredError

stats = pytest.importorskip("scipy.stats")


@given(
    bins=st.integers(2, 80),
    low=st.floats(-20, 5),
    span=st.floats(0.5, 40),
    place=st.floats(-0.5, 1.5),
)
def test_histogram_is_a_truncated_normal(bins: int, low: float, span: float, place: float) -> None:
    """Section 3.1: the mass in a bin is a difference of the cdf, normalised over the support."""
    high = low + span
    width = span / bins
    target = low + place * span
    centre = np.clip(target, low + width / 2, high - width / 2)
    sigma = 0.75 * width
    normal = stats.truncnorm((low - centre) / sigma, (high - centre) / sigma, centre, sigma)
    expected = np.diff(normal.cdf(np.linspace(low, high, bins + 1)))
    found = HLGauss(bins, low, high).histogram(torch.tensor([target]))
    np.testing.assert_allclose(found[0], expected, atol=2e-4)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_value_of_the_histogram_is_the_target() -> None:
    loss = HLGauss(101, -1.0, 11.0)
    target = torch.linspace(-0.6, 10.6, 200)  # beyond, the histogram is cut off on one side
    torch.testing.assert_close(loss.value(loss.histogram(target).log()), target, atol=1e-3, rtol=0)


@given(
    bins=st.integers(20, 200),
    low=st.floats(-20, -0.1),
    high=st.floats(0.1, 2000),
    linear_to=st.floats(0.01, 10),
)
def test_value_of_asinh_bins_is_the_target(
    bins: int, low: float, high: float, linear_to: float
) -> None:
    """To a share of the target, not of the support."""
    loss = HLGauss(bins, low, high, linear_to)
    width = float(loss.edges[1] - loss.edges[0])
    if width > 0.5:  # as coarse as half its own scale: the histogram's tails leave the support
        return
    inner = torch.linspace(float(loss.edges[0]) + 4 * width, float(loss.edges[-1]) - 4 * width, 50)
    target = linear_to * inner.sinh()
    found = loss.value(loss.histogram(target).log())
    torch.testing.assert_close(found, target, rtol=2e-3, atol=2e-3 * linear_to)


def test_asinh_bins_do_not_inflate_a_bootstrapped_value() -> None:
    """A reward of 1 for ever, bootstrapped through the bins, is worth 1 / (1 - gamma)."""
    loss = HLGauss(101, -0.3, 300.0, 0.05)
    value = torch.zeros(())
    for _ in range(2_000):
        value = loss.value(loss.histogram(1 + 0.99 * value).log())
    assert float(value) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("linear_to", [None, 0.1])
def test_bias_of_zero_gives_a_value_near_zero(linear_to: float | None) -> None:
    loss = HLGauss(101, -1.0, 11.0, linear_to)
    assert abs(float(loss.value(loss.bias_of_zero()))) < 0.2
    assert float(loss.bias_of_zero().softmax(0).min()) > 1e-4


def test_targets_outside_the_support_are_those_at_its_ends() -> None:
    loss = HLGauss(21, 0.0, 10.0)
    inside = loss.histogram(torch.tensor([0.0, 10.0]))
    torch.testing.assert_close(loss.histogram(torch.tensor([-1e6, 1e6])), inside)
    values = loss.value(inside.log())
    assert 0 <= values[0] < 10 / 21
    assert 10 * 20 / 21 < values[1] <= 10


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_loss_is_cross_entropy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    loss = HLGauss(11, -2.0, 2.0)
    logits, target = torch.randn(*shape, 11), torch.rand(shape) * 3 - 1.5
    expected = F.cross_entropy(
        logits.reshape(-1, 11), loss.histogram(target).reshape(-1, 11), reduction="none"
    )
    torch.testing.assert_close(loss.loss(logits, target), expected.reshape(shape))


@pytest.mark.parametrize("loss", [SquaredError(), HLGauss(31, -3.0, 3.0)])
@pytest.mark.parametrize("target", [-1.7, 0.0, 2.2])
def test_gradient_descent_moves_the_value_to_the_target(
    loss: SquaredError | HLGauss, target: float
) -> None:
    outputs = torch.zeros(loss.outputs, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    distance = [abs(loss.value(outputs).item() - target)]
    for _ in range(400):
        optimizer.zero_grad()
        loss.loss(outputs, torch.tensor(target)).backward()
        optimizer.step()
        distance.append(abs(loss.value(outputs).item() - target))
    assert distance[1] < distance[0] or distance[0] < 1e-6
    assert distance[-1] < 0.01


def test_squared_error_equals_torchs() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(2, 3, 4, 1, requires_grad=True), torch.randn(3, 4)
    loss = SquaredError()
    assert torch.equal(loss.value(outputs), outputs[..., 0])
    expected = 0.5 * F.mse_loss(outputs[..., 0], target.expand(2, 3, 4), reduction="none")
    torch.testing.assert_close(loss.loss(outputs, target), expected)
    # SB3's SAC: half of the sum of the critics' mean squared errors.
    (mine,) = torch.autograd.grad(loss.loss(outputs, target).mean(dim=(1, 2)).sum(), outputs)
    sb3 = 0.5 * sum(F.mse_loss(critic[..., 0], target) for critic in outputs)
    assert isinstance(sb3, torch.Tensor)
    torch.testing.assert_close(mine, torch.autograd.grad(sb3, outputs)[0])


@pytest.mark.parametrize(
    ("bins", "low", "high", "linear_to"),
    [(1, 0, 1, None), (11, 1, 1, None), (11, 1, 0, 0.5), (11, 0, 1, 0.0)],
)
def test_bins_without_a_support_are_refused(
    bins: int, low: float, high: float, linear_to: float | None
) -> None:
    with pytest.raises(ValueError, match="bins from"):
        HLGauss(bins, low, high, linear_to)
