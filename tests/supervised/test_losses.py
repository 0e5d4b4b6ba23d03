"""Losses against torch's, loops over numpy arrays, and arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from conal_rl.supervised import losses
from tests.helpers.refusals import refused

Loss = Callable[..., Tensor]
quick = settings(max_examples=25, deadline=None)


def segmentation(batch: int, side: int, seed: int, void: int) -> tuple[Tensor, Tensor]:
    """Logits of 4 classes and a target, about a third of it unlabelled."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 4, side, side + 1, generator=rng, dtype=torch.float64)
    target = torch.randint(1, 4, (batch, side, side + 1), generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.3] = void
    return logits, target


def maps(batch: int, side: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """A predicted and a true map; about a third of the true pixels are 0 in every channel."""
    rng = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(
        2, batch, channels, side, side + 1, generator=rng, dtype=torch.float64
    )
    return prediction, target * (torch.rand(batch, 1, side, side + 1, generator=rng) > 0.3)


def binary(batch: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and a target of 0 and 1, about a third of it 255."""
    prediction, target = maps(batch, side, seed)
    return prediction, torch.where(target == 0, 255, (target > 0.4).double())


def tokens(batch: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    logits, target = segmentation(batch, side, seed, -100)
    return logits[..., 0].transpose(1, 2), target[..., 0]


def normals(batch: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    prediction, target = maps(batch, side, seed, channels=3)
    return prediction, F.normalize(target)


LOSSES: dict[str, tuple[Loss, Callable[[int, int, int], tuple[Tensor, Tensor]], float]] = {
    # The loss, a maker of inputs, and the value of a completely unlabelled target.
    "semantic": (losses.cross_entropy, lambda b, n, s: segmentation(b, n, s, -1), -1),
    "semantic_255": (
        lambda p, t, mask=None: losses.cross_entropy(p, t, void=255, mask=mask),
        lambda b, n, s: segmentation(b, n, s, 255),
        255,
    ),
    "weighted": (
        lambda p, t, mask=None: losses.cross_entropy(
            p, t, void=0, class_weight=torch.tensor([7.0, 0.5, 1.0, 2.0]).double(), mask=mask
        ),
        lambda b, n, s: segmentation(b, n, s, 0),
        0,
    ),
    "tokens": (losses.token_cross_entropy, tokens, -100),
    "depth": (lambda p, t, mask=None: losses.l1(p, t, void=0, mask=mask), maps, 0),
    "l1": (losses.l1, maps, np.nan),
    "squared": (losses.squared_error, maps, np.nan),
    "cosine": (losses.normals_cosine, normals, 0),
    "normals_l1": (losses.normals_l1, normals, 255),
    "saliency": (losses.balanced_bce, binary, 255),
    "edges": (
        lambda p, t, mask=None: losses.balanced_bce(p, t, positive_weight=0.95, mask=mask),
        binary,
        255,
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@quick
@given(batch=st.integers(1, 4), side=st.integers(1, 4), seed=st.integers(0, 10**6), data=st.data())
def test_a_masked_sample_is_left_out(
    name: str, batch: int, side: int, seed: int, data: st.DataObject
) -> None:
    loss, problem, _ = LOSSES[name]
    prediction, target = problem(batch, side, seed)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    prediction.requires_grad_()
    masked = loss(prediction, target, mask=mask)
    (gradient,) = torch.autograd.grad(masked, prediction)
    torch.testing.assert_close(masked, loss(prediction[mask], target[mask]))
    assert masked.isfinite() and gradient.isfinite().all()
    assert not gradient[~mask].any()
    if not mask.any():
        assert masked == 0


@every_loss
def test_an_unlabelled_batch_has_zero_loss_and_gradient(name: str) -> None:
    loss, problem, void = LOSSES[name]
    prediction, target = problem(3, 4, 0)
    prediction[0] = 0  # the norm has no gradient there
    prediction.requires_grad_()
    if np.isnan(void):  # without a void value, only a mask can
        value = loss(prediction, target, mask=torch.zeros(3, dtype=torch.bool))
    else:
        value = loss(prediction, torch.full_like(target, int(void)))
    value.backward()
    assert value == 0 and prediction.grad is not None
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@every_loss
def test_exactly_the_labelled_elements_get_a_gradient(name: str) -> None:
    loss, problem, void = LOSSES[name]
    prediction, target = problem(2, 4, 1)
    prediction.requires_grad_()
    loss(prediction, target).backward()
    gradient, unlabelled = prediction.grad, target == void
    assert gradient is not None
    if name == "tokens":
        gradient = gradient.transpose(1, 2)
    if gradient.ndim == unlabelled.ndim:  # per pixel: a normal of zeros or 255 is zero in all
        unlabelled = (
            (unlabelled | (target == 0)).all(1) if target.shape[1] == 3 else unlabelled[:, 0]
        )
    per_pixel = gradient.abs().sum(1)
    assert not per_pixel[unlabelled].any()
    assert (per_pixel[~unlabelled] > 0).all()


@quick
@given(batch=st.integers(1, 3), side=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_cross_entropies_equal_torchs(batch: int, side: int, seed: int) -> None:
    logits, target = segmentation(batch, side, seed, -1)
    if not (target != -1).any():
        return
    expected = F.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(losses.cross_entropy(logits, target), expected)
    # uint8 images with 255, and Taskonomy's weights with 0 for unlabelled.
    bytes_ = target.where(target != -1, 255).to(torch.uint8)
    torch.testing.assert_close(losses.cross_entropy(logits, bytes_, void=255), expected)
    zeros, weight = target.where(target != -1, 0), torch.tensor([9.0, 0.2, 1.0, 3.0]).double()
    torch.testing.assert_close(
        losses.cross_entropy(logits, zeros, void=0, class_weight=weight),
        F.cross_entropy(logits, zeros, weight, ignore_index=0),
    )


def test_cross_entropies_equal_sums_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4): losses ln 4 for class 0 and ln 4/3 for class 1.
    logits = torch.tensor([[0, np.log(3)], [0, np.log(3)]])
    value = losses.cross_entropy(logits, torch.tensor([0, 1]))
    assert value.item() == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)
    # A sentence of three pieces: the second continues a word and has no tag.
    sentence = torch.stack([logits[0], logits[0] * 100, logits[0]])[None]
    value = losses.token_cross_entropy(sentence, torch.tensor([[0, -100, 1]]))
    assert value.item() == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)


def test_errors_of_depth_equal_sums_by_hand() -> None:
    prediction = torch.tensor([1.0, 5.0, 2.0]).view(1, 1, 1, 3)
    target = torch.tensor([3.0, 0.0, 1.0]).view(1, 1, 1, 3)
    # |1 - 3| and |2 - 1| over the two labelled pixels; all three: (2 + 5 + 1) / 3.
    assert losses.l1(prediction, target, void=0).item() == pytest.approx(1.5)
    assert losses.l1(prediction, target).item() == pytest.approx(8 / 3)
    assert losses.squared_error(prediction, target).item() == pytest.approx((4 + 25 + 1) / 3)


@quick
@given(batch=st.integers(1, 3), side=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_losses_of_normals_equal_a_loop_over_pixels(batch: int, side: int, seed: int) -> None:
    prediction, target = normals(batch, side, seed)
    dots, differences = [], []
    for p, t in zip(prediction.movedim(1, -1).reshape(-1, 3), target.movedim(1, -1).reshape(-1, 3)):
        if np.any(t.numpy() != 0):
            unit = p.numpy() / np.linalg.norm(p.numpy())
            dots.append(unit @ t.numpy())
            differences.extend(np.abs(unit - t.numpy()))
    cosine, l1 = losses.normals_cosine(prediction, target), losses.normals_l1(prediction, target)
    assert cosine.item() == pytest.approx(1 - np.mean(dots) if dots else 0)
    assert l1.item() == pytest.approx(np.mean(differences) if dots else 0)
    void = target.where((target != 0).any(1, keepdim=True), 255)  # PASCAL-Context's way
    torch.testing.assert_close(losses.normals_l1(prediction, void), l1)


def test_a_normal_whose_channels_sum_to_zero_is_labelled() -> None:
    target = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    # Opposite: 1 - (-1); unit vectors differ by 2 / sqrt(2) in two of three channels.
    assert losses.normals_cosine(-5 * target, target).item() == pytest.approx(2)
    assert losses.normals_l1(-5 * target, target).item() == pytest.approx(2 * 2 / np.sqrt(2) / 3)


@quick
@given(
    batch=st.integers(1, 3),
    side=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    weight=st.none() | st.just(0.95),
)
def test_balanced_bce_equals_a_loop(batch: int, side: int, seed: int, weight: float | None) -> None:
    logits, target = binary(batch, side, seed)
    pixels = [(z, t) for z, t in zip(logits.flatten().tolist(), target.flatten().tolist()) if t < 2]
    share = weight or (np.mean([t == 0 for _, t in pixels]) if pixels else 0)
    terms = [
        -share * np.log(expit(z)) if t else -(1 - share) * np.log(expit(-z)) for z, t in pixels
    ]
    value = losses.balanced_bce(logits, target, positive_weight=weight)
    assert value.item() == pytest.approx(np.mean(terms) if terms else 0)


def test_balanced_bce_equals_sums_by_hand() -> None:
    # One salient pixel of four: w = 3/4. Logits of 0 lose ln 2 each, so
    # (3/4 + 3 * 1/4) ln 2 / 4; with w = 0.95: (0.95 + 3 * 0.05) ln 2 / 4. The fifth is void.
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0, 255.0]])
    assert losses.balanced_bce(torch.zeros(1, 5), target).item() == pytest.approx(
        1.5 * np.log(2) / 4
    )
    edges = losses.balanced_bce(torch.zeros(1, 5), target, positive_weight=0.95)
    assert edges.item() == pytest.approx(1.1 * np.log(2) / 4)


def test_infinite_unlabelled_elements_do_not_count() -> None:
    prediction = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    value = losses.l1(prediction, torch.tensor([[2.0, 0.0]]), void=0)
    value.backward()
    assert value == 1 and torch.equal(prediction.grad, torch.tensor([[-1.0, 0.0]]))  # type: ignore[arg-type]


@every_loss
def test_half_precision_does_not_overflow(name: str) -> None:
    loss, problem, _ = LOSSES[name]
    prediction, target = problem(8, 100, 0)  # sums of 80,000 pixels; the largest float16 is 65,504
    expected = loss(prediction, target)
    half = loss(prediction.half(), target.half() if target.is_floating_point() else target)
    torch.testing.assert_close(half, expected, rtol=2e-3, atol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (losses.cross_entropy, (2, 3, 4, 4), (2, 4, 5)),
        (losses.cross_entropy, (2,), (2,)),
        (losses.token_cross_entropy, (2, 5, 3), (2, 3)),
        (losses.l1, (2, 1, 4, 4), (2, 4, 4)),
        (losses.squared_error, (2, 1), (2,)),
        (losses.normals_cosine, (2, 3, 4, 4), (2, 1, 4, 4)),
        (losses.normals_l1, (2, 1, 4, 4), (2, 1, 4, 4)),
        (losses.balanced_bce, (2, 1, 4, 4), (2, 4, 4)),
    ],
)
def test_errors_of_shapes_name_both_shapes(
    loss: Loss, prediction: tuple[int, ...], target: tuple[int, ...]
) -> None:
    with refused(ValueError, prediction, target):
        loss(torch.zeros(prediction), torch.zeros(target))


def test_errors_of_masks_name_both_shapes() -> None:
    with refused(ValueError, "mask: got (2, 1)", "(2, 4)"):
        losses.l1(torch.zeros(2, 4), torch.zeros(2, 4), mask=torch.ones(2, 1))
