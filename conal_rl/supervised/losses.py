"""The losses of the supervised benchmarks: each a mean over what is labelled.

What is unlabelled is said in two ways. Inside a target by a void value, as the data set has it. And
for whole samples by `mask` `(batch,)`, True where a sample has a label for the task; None means
that all have one.

A batch in which nothing is labelled gives a loss of exactly 0 whose gradient is exactly 0, so that
a task may sit out a step. Shapes that do not fit each other raise a ValueError.

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
    """Cross-entropy of segmentation, an attribute or a sentence.

    Args:
        prediction: logits `(batch, classes, ...)`.
        target: class indices `(batch, ...)`.
        void: the index that says unlabelled: -1 in NYUv2, CityScapes and Taskonomy, 255
            in PASCAL-Context. Never looked up, so it may be a class's index.
        class_weight: `(classes,)`, Taskonomy's prior; the mean is then weighted by it too, as
            torch's is.
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
    """Cross-entropy of tags, which a word's first piece alone carries (XTREME).

    Args:
        prediction: logits `(batch, tokens, tags)`.
        target: tag indices `(batch, tokens)`, `void` at other pieces and at padding.
        void: the index that says unlabelled.
        mask: `(batch,)`, see the module.
    """
    require_tags(prediction, target)
    return cross_entropy(prediction.transpose(1, 2), target, void=void, mask=mask)


def l1(
    prediction: Tensor, target: Tensor, *, void: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Mean absolute error of depth, keypoints or edges, in the target's unit.

    Args:
        prediction: `(batch, ...)`.
        target: as `prediction`.
        void: the value that says unlabelled: 0 for the depth `(batch, 1, height, width)` of NYUv2
            and CityScapes (LibMTL: a channel sum of 0); None where there is none.
        mask: `(batch,)`, see the module.
    """
    require_same_shape(prediction, target)
    return _mean((prediction - target).abs(), _labelled(has_value(target, void), mask))


def squared_error(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error; `prediction` and `target` `(batch, ...)`, `mask` `(batch,)`."""
    require_same_shape(prediction, target)
    return _mean((prediction - target).square(), _labelled(has_value(target, None), mask))


def normals_cosine(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """1 - mean cosine between predicted and true normals, over the labelled pixels.

    With targets of unit length, which NYUv2 has, it is LibMTL's 1 - mean dot product; Taskonomy's
    loss is written with the cosine itself.

    Args:
        prediction: `(batch, 3, height, width)`, of any length.
        target: as `prediction`; unlabelled where `has_normal` says.
        mask: `(batch,)`, see the module.
    """
    labelled = _labelled(has_normal(prediction, target), mask)
    return _mean(1 - (F.normalize(prediction) * F.normalize(target)).sum(dim=1), labelled)


def normals_l1(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of unit normals, over labelled pixels and channels (ASTMT).

    Arguments as `normals_cosine`'s.
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
    """Binary cross-entropy, weighted `w` where the target is positive and `1 - w` elsewhere.

    Args:
        prediction: logits `(batch, ...)`.
        target: as `prediction`, positive from 0.5 on.
        positive_weight: `w`, 0.95 for edges. None, for saliency: the share of negatives among the
            batch's labelled pixels (Xie & Tu, ICCV 2015, equation 2).
        void: the value that says unlabelled.
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
    """Where `target` is labelled, of its shape: everywhere, or where it is not `void`."""
    return torch.ones_like(target, dtype=torch.bool) if void is None else target != void


def has_normal(prediction: Tensor, target: Tensor) -> Tensor:
    """Where `target` `(batch, 3, height, width)` is labelled, `(batch, height, width)`.

    A normal of zeros (NYUv2) or with a channel of 255 (PASCAL-Context, Taskonomy) is none. LibMTL
    asks for a channel sum other than 0 instead, which loses true normals such as (1, -1, 0).

    Raises:
        ValueError: `prediction` has another shape, or there are not 3 channels.
    """
    require_same_shape(prediction, target)
    if target.ndim < 2 or target.shape[1] != 3:
        raise ValueError(
            f"normals are (batch, 3, ...), not {_shape(prediction)} with target {_shape(target)}"
        )
    return (target != 0).any(dim=1) & (target != 255).all(dim=1)


def normal_angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Angles in degrees between normals `(batch, 3, ...)` where there are targets, `(pixel,)`."""
    labelled = has_normal(prediction, target)
    prediction, target = F.normalize(prediction.float()), F.normalize(target.float())
    # Near 0 the arc cosine of a float32 dot product is some 0.02 degrees off; this is not.
    half = torch.atan2((prediction - target).norm(dim=1), (prediction + target).norm(dim=1))
    return (2 * half).rad2deg()[labelled]


def require_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless both have one shape: broadcasting would hide the mistake."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {_shape(prediction)} and target {_shape(target)} differ")


def require_classes(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless logits `(batch, classes, ...)` fit a target `(batch, ...)`."""
    without_classes = prediction.shape[:1] + prediction.shape[2:]
    if prediction.ndim < 2 or without_classes != target.shape:
        raise ValueError(
            f"logits (batch, classes, ...) {_shape(prediction)} do not fit a target (batch, ...) "
            f"{_shape(target)}"
        )


def require_tags(prediction: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless logits `(batch, tokens, tags)` fit tags `(batch, tokens)`."""
    if prediction.ndim != 3 or prediction.shape[:2] != target.shape:
        raise ValueError(
            f"logits (batch, tokens, tags) {_shape(prediction)} do not fit tags (batch, tokens) "
            f"{_shape(target)}"
        )


def require_mask(mask: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless `mask` is `(batch,)`."""
    if mask.shape != target.shape[:1]:
        raise ValueError(f"mask {_shape(mask)} is not (batch,) of target {_shape(target)}")


def _labelled(labelled: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return labelled
    require_mask(mask, labelled)
    return labelled & mask.bool().view(-1, *[1] * (labelled.ndim - 1))


def _mean(values: Tensor, labelled: Tensor) -> Tensor:
    return _sum(values, labelled) / labelled.sum().clamp(min=1)


def _sum(values: Tensor, labelled: Tensor) -> Tensor:
    # Selecting (not multiplying) keeps what is unlabelled, even infinities, out of the sum, which
    # would overflow in half precision.
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.where(labelled, values, 0).sum(dtype=dtype)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
