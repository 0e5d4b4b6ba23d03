"""The metrics of the supervised benchmarks over a whole set, and delta_p over tasks.

Every metric has `update`, `compute`, `reset` and `merge`; see `Metric`. Shares are from 0 to 1.
Only `delta_p` and `total_error` are in percent. Voids and masks are those of `losses`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conal_rl.errors import ConalError, import_extra
from conal_rl.supervised.losses import (
    has_normal,
    has_value,
    normal_angles,
    require_classes,
    require_mask,
    require_same_shape,
    require_tags,
)

Scores = Mapping[str, Mapping[str, float]]
"""The value of each metric of each task."""

_LOWER = ("abs_error", "cross_entropy", "mean_angle", "median_angle", "rel_error", "squared_error")
_SHARES = ("within_11.25", "within_22.5", "within_30")
_HIGHER = ("accuracy", "cosine", "f1", "mIoU", "odsF", "pixel_accuracy", *_SHARES)
LOWER_IS_BETTER = dict.fromkeys(_LOWER, True) | dict.fromkeys(_HIGHER, False)
"""The names of all values that metrics compute; True if lower is better."""


class Metric:
    """A metric over a whole set, counted batch by batch; the batches' sizes do not matter.

    A subclass defines `_elements`, and the metric is their mean over the set. Or it defines what a
    batch adds to the state (`_count`) and how the values follow from the state (`_values`).
    """

    names: ClassVar[tuple[str, ...]]
    """The names of the values that `compute` returns."""
    void: int | None = None
    """The target's value for unlabelled elements; the constructor can change it."""
    _require_shapes = staticmethod(require_same_shape)
    _state: Tensor

    def __init__(self, void: int | None = None):
        self.void = self.void if void is None else void
        self.reset()

    @property
    def state(self) -> Tensor:
        """The counts so far; `merge` adds them to a metric on a different device."""
        return self._state

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch with the shapes of the class; `mask` is `(batch,)`, as in `losses`."""
        self._require_shapes(prediction, target)
        if mask is not None:
            require_mask(mask, target)
            prediction, target = prediction[mask.bool()], target[mask.bool()]
        if prediction.device.type == "mps":  # no double precision there
            prediction, target = prediction.cpu(), target.cpu()
        if len(target):
            self.merge(self._count(prediction, target))

    def merge(self, state: Tensor) -> None:
        """Add the `state` of a metric of the same class."""
        self._state = self._state + state.cpu()

    def compute(self) -> dict[str, float]:
        """Return the values by name; all are NaN if no labelled element was counted."""
        values = [math.nan] * len(self.names) if self._is_empty() else self._values(self.state)
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def reset(self) -> None:
        """Remove all counts."""
        self._state = torch.zeros(
            (), dtype=torch.float64
        )  # broadcasts to the shape of the first count

    def _is_empty(self) -> bool:
        return not self.state.any()

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the values of every labelled element, `(name, element)`."""
        raise NotImplementedError

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        elements = self._elements(prediction, target)
        return _sums(*elements, torch.ones_like(elements[0]))

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        return state[:-1] / state[-1]


class Segmentation(Metric):
    """mIoU and pixel accuracy, both from one confusion matrix over the whole set.

    Logits are `(batch, classes, ...)`, targets `(batch, ...)`. torchmetrics counts; if it is not
    installed, an ExtraError is raised. The mean leaves out two kinds of classes, as torchmetrics'
    Jaccard index does: classes that are neither in the targets nor predicted, and `void`.
    """

    names: ClassVar[tuple[str, ...]] = ("mIoU", "pixel_accuracy")
    _require_shapes = staticmethod(require_classes)

    def __init__(self, classes: int, void: int = -1):
        super().__init__(void)
        self.classes = classes
        functions = import_extra("torchmetrics.functional.classification", "torchmetrics", "vision")
        self._confusion = functions.multiclass_confusion_matrix

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._confusion(prediction, target.long(), self.classes, ignore_index=self.void)

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        hits = state.diag()
        union = state.sum(dim=0) + state.sum(dim=1) - hits
        present = union > 0
        if self.void in range(self.classes):
            present[self.void] = False
        return (hits[present] / union[present]).mean(), hits.sum() / state.sum()


class MeanIoU(Segmentation):
    """Only the mIoU of `Segmentation`, as ASTMT scores PASCAL-Context."""

    names = ("mIoU",)

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        return tuple(super()._values(state))[:1]


class TaskonomySegmentation(Metric):
    """AdaShare's segmentation error (cross-entropy weighted by class) and pixel accuracy.

    Logits are `(batch, classes, ...)`, targets `(batch, ...)`, `class_weight` is `(classes,)`. The
    mean is over the set's pixels. AdaShare instead averages the means of batches.
    """

    names = ("cross_entropy", "pixel_accuracy")
    _require_shapes = staticmethod(require_classes)

    def __init__(self, class_weight: Tensor, void: int = -1):
        super().__init__(void)
        self.class_weight = class_weight

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        labelled = has_value(target, self.void)
        logits, classes = prediction.movedim(1, -1)[labelled].float(), target[labelled].long()
        weight = self.class_weight.to(logits)
        losses = F.cross_entropy(logits, classes, weight, reduction="none")
        hits = logits.argmax(dim=1) == classes
        return _sums(losses, weight[classes], hits, labelled)

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        return state[0] / state[1], state[2] / state[3]


class Accuracy(Metric):
    """Share of correct classes: logits `(batch, classes, ...)`, targets `(batch, ...)`."""

    names = ("accuracy",)
    void = -1
    _require_shapes = staticmethod(require_classes)

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == target)[has_value(target, self.void)][None]


class Depth(Metric):
    """Mean absolute error, and mean error relative to the absolute true depth.

    Predictions and targets are `(batch, 1, height, width)`. A depth of `void` is unlabelled.
    """

    names = ("abs_error", "rel_error")
    void = 0

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        labelled = has_value(target, self.void)
        truth = target[labelled].double()
        error = (prediction[labelled].double() - truth).abs()
        return torch.stack([error, error / truth.abs()])


class AbsoluteError(Metric):
    """Mean absolute error of `(batch, ...)`; a target of `void` is unlabelled."""

    names = ("abs_error",)

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction.double() - target.double()).abs()
        return error[has_value(target, self.void)][None]


class SquaredError(Metric):
    """Mean squared error of `(batch, ...)`."""

    names = ("squared_error",)

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.double() - target.double()).square().reshape(1, -1)


class Cosine(Metric):
    """Mean cosine similarity of normals; the shapes are those of `NormalAngles`."""

    names = ("cosine",)

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(prediction.float(), target.float())
        return cosine[has_normal(prediction, target)][None]


class MeanAngle(Metric):
    """Mean angle of normals in degrees, for PASCAL-Context; shapes as in `NormalAngles`."""

    names = ("mean_angle",)

    def _elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        return normal_angles(prediction, target)[None]


class NormalAngles(Metric):
    """Mean and median angle of normals in degrees, and shares below 11.25, 22.5 and 30 degrees.

    Predictions and targets are `(batch, 3, height, width)`, of any length. `has_normal` finds the
    labelled pixels. `state` holds all angles, because the exact median of the set needs them. That
    takes four bytes of main memory per labelled pixel: 0.3 GB for NYUv2's test set, and twice as
    much during concatenation.
    """

    names = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
    _parts: list[Tensor]

    @property
    def state(self) -> Tensor:
        """The counts so far; `merge` adds them to a metric on a different device."""
        self._parts = [torch.cat([torch.zeros(0), *self._parts])]
        return self._parts[0]

    def merge(self, state: Tensor) -> None:
        """Add the `state` of a metric of the same class."""
        self._parts.append(state.cpu())

    def reset(self) -> None:
        """Remove all counts."""
        self._parts = []

    def _is_empty(self) -> bool:
        return not len(self.state)

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        return normal_angles(prediction, target)

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        angles = state.numpy()
        median = float(
            np.median(angles, overwrite_input=True)
        )  # reorders the angles instead of copying them
        shares = [float(np.mean(angles < limit)) for limit in (11.25, 22.5, 30)]
        return [float(np.mean(angles, dtype=np.float64)), median, *shares]


class Edges(Metric):
    """odsF: the F-measure of edges at the best of 99 thresholds, the same for the whole set.

    Logits and targets are `(batch, ...)`. A target of 0.5 or more is an edge. Pixels are matched
    exactly, without tolerance and without thinning. Published values use both, so our values cannot
    be compared with them.
    """

    names = ("odsF",)
    void = 255

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        labelled = has_value(target, self.void)
        probability = prediction[labelled].double().sigmoid()
        thresholds = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, device=target.device)
        reached = torch.bucketize(probability, thresholds, right=True)  # the number of thresholds
        return (reached + 100 * (target[labelled] >= 0.5)).bincount(minlength=200).view(2, 100)

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        # (2, 99): numbers of other pixels and of edge pixels that reach each threshold.
        reaching = state.flip(1).cumsum(dim=1).flip(1)[:, 1:]
        f = 2 * reaching[1] / (reaching.sum(dim=0) + state[1].sum()).clamp(min=1)
        return [f.max()]


class Saliency(Metric):
    """ASTMT's mIoU of saliency: the IoU of salient pixels, averaged over the images.

    Logits and targets are `(batch, ...)`. A target of 0.5 or more is salient. The value is that of
    the best threshold for the whole set, of 0.2, 0.25, ..., 0.9. An image counts 1 if it has
    neither salient nor predicted pixels. An image without labelled pixels is left out.
    """

    names = ("mIoU",)
    void = 255
    thresholds = np.linspace(0.2, 0.9, 15).tolist()

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        labelled = has_value(target, self.void).flatten(1)
        some = labelled.any(dim=1)
        probability, labelled = prediction.flatten(1)[some].double().sigmoid(), labelled[some]
        salient = (target.flatten(1)[some] >= 0.5) & labelled
        sums = []
        for threshold in self.thresholds:
            predicted = (probability > threshold) & labelled
            union = (predicted | salient).sum(dim=1)
            iou = (predicted & salient).sum(dim=1).double() / union.clamp(min=1)
            sums.append(torch.where(union > 0, iou, 1))
        return _sums(*sums, torch.ones_like(sums[0]))

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        return [(state[:-1] / state[-1]).max()]


class SpanF1(Metric):
    """seqeval's micro F1 of entities, as XTREME scores both PANX and UDPOS.

    Logits are `(batch, tokens, tags)`, targets `(batch, tokens)` with `void` for untagged tokens.
    `tags` has the name of each tag index. seqeval reads the first letter of a part-of-speech tag as
    B, I or O and the rest as its type, so consecutive equal tags form one span. XTREME's numbers
    are computed this way; they are not token accuracies. Without seqeval, an ExtraError is raised.
    """

    names = ("f1",)
    _require_shapes = staticmethod(require_tags)

    def __init__(self, tags: Sequence[str], void: int = -100):
        super().__init__(void)
        self.tags = list(tags)
        labeling = import_extra("seqeval.metrics.sequence_labeling", "seqeval", "nlp")
        self._get_entities = labeling.get_entities

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        labelled = has_value(target, self.void)
        predicted = self._spans(prediction.argmax(dim=2), labelled)
        true = self._spans(target, labelled)
        return torch.tensor([len(predicted & true), len(predicted), len(true), int(labelled.sum())])

    def _spans(self, tags: Tensor, labelled: Tensor) -> set[tuple[str, int, int]]:
        rows = zip(tags.tolist(), labelled.tolist(), strict=True)
        named = [[self.tags[t] for t, has in zip(*row, strict=True) if has] for row in rows]
        with catch_warnings():
            simplefilter("ignore")  # one warning per part-of-speech tag
            return set(self._get_entities(named))

    def _values(self, state: Tensor) -> Iterable[Tensor | float]:
        return [2 * state[0] / (state[1] + state[2]).clamp(min=1)]


def delta_p(values: Scores, reference: Scores) -> float:
    """Return the mean change against a reference, in percent; above 0 is better.

    Each metric changes by `(-1)^[lower is better] (value - STL) / STL`. delta_p is the mean over
    tasks of the mean over metrics, as in the paper's tables (from Maninis et al., CVPR 2019).
    `reference` has the values of single-task learning (STL) or of a different baseline.

    Raises:
        ConalError: tasks or metrics are empty or differ from the reference's, a metric is not in
            `LOWER_IS_BETTER`, or a value of the reference is not above 0.
    """
    _require_same_names("tasks", values, reference)
    changes = []
    for task, metrics in values.items():
        _require_same_names(f"metrics of {task}", metrics, reference[task])
        changes.append(fmean(_change(task, n, v, reference[task][n]) for n, v in metrics.items()))
    return 100 * fmean(changes)


def total_error(accuracies: Mapping[str, float]) -> float:
    """Return the sum over tasks of 100 - accuracy in percent (CelebA); accuracies are 0 to 1."""
    return sum(100 - 100 * accuracy for accuracy in accuracies.values())


def _require_same_names(what: str, values: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    if set(values) != set(reference) or not values:
        raise ConalError(
            f"{what}: got {sorted(values)}, expected those of the reference (at least one): "
            f"{sorted(reference)}. "
            "Use a different reference"
        )


def _change(task: str, name: str, value: float, reference: float) -> float:
    if name not in LOWER_IS_BETTER:
        raise ConalError(
            f"{name} of {task}: got an unknown metric, expected one of `LOWER_IS_BETTER`. "
            "Add it there"
        )
    if not 0 < reference < math.inf:
        raise ConalError(
            f"{name} of {task}: got the reference {reference}, expected more than 0. "
            "Use a different reference"
        )
    return (-1) ** LOWER_IS_BETTER[name] * (value - reference) / reference


def _sums(*values: Tensor) -> Tensor:
    return torch.stack([value.sum(dtype=torch.float64) for value in values])
