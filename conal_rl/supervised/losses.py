"""The losses of the supervised benchmarks: each is a mean over the labelled elements.

There are two ways to be unlabelled. An element is unlabelled if its target is the data set's void
value. A whole sample is unlabelled if its entry in `mask` `(batch,)` is False. Without a mask, all
samples are labelled.

If nothing in a batch is labelled, the loss and its gradient are exactly 0, so a task can pause for
a step. Shapes that do not match raise a ValueError.

Sources: LibMTL and the authors' code for NYUv2 and CityScapes; Maninis et al., CVPR 2019 (ASTMT)
for PASCAL-Context; Sun et al., NeurIPS 2020 (AdaShare) for Taskonomy; Hu et al., ICML 2020 (XTREME)
for text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    prediction: Tensor,
    target: Tensor,
    *,
    void: int = -1,
    class_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of segmentation, an attribute or a sentence.

    Args:
        prediction: logits `(batch, classes, ...)`.
        target: class indices `(batch, ...)`.
        void: the index of unlabelled elements: -1 in NYUv2, CityScapes and Taskonomy, 255 in
            PASCAL-Context. It may equal the index of a class.
        class_weight: `(classes,)`, Taskonomy's prior. The mean is weighted by it too, as in torch.
        mask: `(batch,)`, see the module.
    """
    require_classes(prediction, target)
    labelled = _labelled(target != void, mask)
    target = torch.where(labelled, target.long(), void)
    losses = F.cross_entropy(prediction, target, ignore_index=void, reduction="none")
    if class_weight is None:
        return _mean(losses, labelled)
    weight = class_weight.to(target.device)[target.masked_fill(~labelled, 0)]
    total = _sum(weight, labelled)
    return _sum(losses * weight, labelled) / torch.where(total > 0, total, 1)


def token_cross_entropy(
    prediction: Tensor, target: Tensor, *, void: int = -100, mask: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of tags; only a word's first piece has a tag (XTREME).

    Args:
        prediction: logits `(batch, tokens, tags)`.
        target: tag indices `(batch, tokens)`, `void` for other pieces and for padding.
        void: the index of unlabelled tokens.
        mask: `(batch,)`, see the module.
    """
    require_tags(prediction, target)
    return cross_entropy(prediction.transpose(1, 2), target, void=void, mask=mask)


def l1(
    prediction: Tensor, target: Tensor, *, void: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return the mean absolute error of depth, keypoints or edges, in the target's unit.

    Args:
        prediction: `(batch, ...)`.
        target: the shape of `prediction`.
        void: the value of unlabelled elements. It is 0 for the depth `(batch, 1, height, width)` of
            NYUv2 and CityScapes (LibMTL: a channel sum of 0). None: all elements are labelled.
        mask: `(batch,)`, see the module.
    """
    require_same_shape(prediction, target)
    return _mean((prediction - target).abs(), _labelled(has_value(target, void), mask))


def squared_error(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of `(batch, ...)`; `mask` is `(batch,)`."""
    require_same_shape(prediction, target)
    return _mean((prediction - target).square(), _labelled(has_value(target, None), mask))


def normals_cosine(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return 1 - mean cosine between predicted and true normals, over the labelled pixels.

    Taskonomy defines its loss this way. For targets of unit length, as in NYUv2, it equals LibMTL's
    1 - mean dot product.

    Args:
        prediction: `(batch, 3, height, width)`, of any length.
        target: the shape of `prediction`; `has_normal` finds the labelled pixels.
        mask: `(batch,)`, see the module.
    """
    labelled = _labelled(has_normal(prediction, target), mask)
    return _mean(1 - (F.normalize(prediction) * F.normalize(target)).sum(dim=1), labelled)


def normals_l1(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference of unit normals, over pixels and channels (ASTMT).

    The arguments are those of `normals_cosine`.
    """
    labelled = _labelled(has_normal(prediction, target), mask)
    difference = (F.normalize(prediction) - F.normalize(target)).abs()
    return _mean(difference.mean(dim=1), labelled)


def balanced_bce(
    prediction: Tensor,
    target: Tensor,
    *,
    positive_weight: float | None = None,
    void: float = 255,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the binary cross-entropy with weight `w` for positive targets and `1 - w` for others.

    Args:
        prediction: logits `(batch, ...)`.
        target: the shape of `prediction`; 0.5 or more is positive.
        positive_weight: `w`, 0.95 for edges. None, for saliency, takes the share of negatives among
            the batch's labelled pixels (Xie & Tu, ICCV 2015, equation 2).
        void: the value of unlabelled elements.
        mask: `(batch,)`, see the module.
    """
    require_same_shape(prediction, target)
    labelled = _labelled(target != void, mask)
    positive = target >= 0.5
    truth = positive.to(prediction.dtype)
    losses = F.binary_cross_entropy_with_logits(prediction, truth, reduction="none")
    weight = _mean(1 - truth, labelled) if positive_weight is None else positive_weight
    return _mean(torch.where(positive, losses * weight, losses * (1 - weight)), labelled)


def has_value(target: Tensor, void: float | None) -> Tensor:
    """Return True for labelled elements of `target`; a void of None means all."""
    return torch.ones_like(target, dtype=torch.bool) if void is None else target != void


def has_normal(prediction: Tensor, target: Tensor) -> Tensor:
    """Return True for labelled pixels of `target` `(batch, 3, height, width)`, without channels.

    A pixel is unlabelled if its normal is zero (NYUv2) or has a channel of 255 (PASCAL-Context,
    Taskonomy). LibMTL instead tests for a channel sum of 0, which loses normals such as (1, -1, 0).

    Raises:
        ValueError: the shapes differ, or there are not 3 channels.
    """
    require_same_shape(prediction, target)
    if target.ndim < 2 or target.shape[1] != 3:
        raise ValueError(
            f"normals: got prediction {_shape(prediction)} and target {_shape(target)}, "
            "expected (batch, 3, ...)"
        )
    return (target != 0).any(dim=1) & (target != 255).all(dim=1)


def normal_angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Return angles `(pixel,)` in degrees between normals `(batch, 3, ...)`, at labelled pixels."""
    labelled = has_normal(prediction, target)
    prediction, target = F.normalize(prediction.float()), F.normalize(target.float())
    # Near 0, the arc cosine of a float32 dot product is wrong by 0.02 degrees; atan2 is exact.
    half = torch.atan2((prediction - target).norm(dim=1), (prediction + target).norm(dim=1))
    return (2 * half).rad2deg()[labelled]


def require_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless both have the same shape; broadcasting would hide the mistake."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction: got {_shape(prediction)}, expected the target's shape {_shape(target)}"
        )


def require_classes(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless logits `(batch, classes, ...)` fit a target `(batch, ...)`."""
    without_classes = prediction.shape[:1] + prediction.shape[2:]
    if prediction.ndim < 2 or without_classes != target.shape:
        raise ValueError(
            f"prediction: got {_shape(prediction)}, expected (batch, classes, ...) for a target "
            f"(batch, ...) {_shape(target)}"
        )


def require_tags(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless logits `(batch, tokens, tags)` fit tags `(batch, tokens)`."""
    if prediction.ndim != 3 or prediction.shape[:2] != target.shape:
        raise ValueError(
            f"prediction: got {_shape(prediction)}, expected (batch, tokens, tags) for a target "
            f"(batch, tokens) {_shape(target)}"
        )


def require_mask(mask: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless `mask` is `(batch,)`."""
    if mask.shape != target.shape[:1]:
        raise ValueError(f"mask: got {_shape(mask)}, expected (batch,) of target {_shape(target)}")


def _labelled(labelled: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return labelled
    require_mask(mask, labelled)
    return labelled & mask.bool().view(-1, *[1] * (labelled.ndim - 1))


def _mean(values: Tensor, labelled: Tensor) -> Tensor:
    return _sum(values, labelled) / labelled.sum().clamp(min=1)


def _sum(values: Tensor, labelled: Tensor) -> Tensor:
    # `where` also removes infinities of unlabelled elements; a product with 0 would not. The
    # sum is in single precision, because half precision would overflow.
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.where(labelled, values, 0).sum(dtype=dtype)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
