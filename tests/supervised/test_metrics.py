"""Metrics against torchmetrics, seqeval, numpy loops, and arithmetic by hand."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from math import isnan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from seqeval.metrics import f1_score
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import functional as tm

from conal_rl.errors import ConalError, ExtraError
from conal_rl.supervised import metrics
from conal_rl.supervised.metrics import LOWER_IS_BETTER, Metric, delta_p, total_error
from tests.helpers.refusals import refused

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
POS = ["ADJ", "NOUN", "SCONJ", "CCONJ", "INTJ"]
WEIGHT = torch.tensor([5.0, 0.5, 1.0, 2.0])


def scored(samples: int, seed: int, shape: tuple[int, ...], void: int) -> tuple[Tensor, Tensor]:
    """Logits of 4 classes `(samples, 4, ...)` and targets 1 to 3; a third is void."""
    rng = torch.Generator().manual_seed(seed)
    target = torch.randint(1, 4, (samples, *shape), generator=rng)
    logits = torch.randn(samples, 4, *shape, generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.3] = void
    return logits, target


def images(samples: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """A predicted and a true map; a third of the true pixels are 0 in every channel."""
    rng = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, samples, channels, 3, 4, generator=rng)
    return prediction, target * (torch.rand(samples, 1, 3, 4, generator=rng) > 0.3)


def normals(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    prediction, target = images(samples, seed, channels=3)
    return target + 0.3 * prediction, F.normalize(target)


def binary(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    prediction, target = images(samples, seed)
    return 2 * prediction, torch.where(target == 0, 255, (target > 0.3).float())


def tagged(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 5, (samples, 6), generator=rng)
    logits = torch.randn(samples, 6, 5, generator=rng) + F.one_hot(target, 5)
    target[torch.rand(target.shape, generator=rng) < 0.2] = -100
    return logits, target


Problem = Callable[[int, int], tuple[Tensor, Tensor]]
METRICS: dict[str, tuple[Callable[[], Metric], Problem]] = {
    "segmentation": (lambda: metrics.Segmentation(4), lambda n, s: scored(n, s, (3, 4), -1)),
    "taskonomy": (
        lambda: metrics.TaskonomySegmentation(WEIGHT),
        lambda n, s: scored(n, s, (3, 4), -1),
    ),
    "accuracy": (metrics.Accuracy, lambda n, s: scored(n, s, (), -1)),
    "depth": (metrics.Depth, images),
    "l1": (metrics.AbsoluteError, images),
    "squared": (metrics.SquaredError, images),
    "cosine": (metrics.Cosine, normals),
    "mean_angle": (metrics.MeanAngle, normals),
    "angles": (metrics.NormalAngles, normals),
    "edges": (metrics.Edges, binary),
    "saliency": (metrics.Saliency, binary),
    "ner": (lambda: metrics.SpanF1(TAGS), tagged),
    "pos": (lambda: metrics.SpanF1(POS), tagged),
}
every_metric = pytest.mark.parametrize("name", METRICS)
quick = settings(max_examples=20, deadline=None)


def value_of(metric: Metric, *batches: tuple[Tensor, ...]) -> dict[str, float]:
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def approximately(values: dict[str, float]) -> object:
    return pytest.approx(values, rel=1e-6, nan_ok=True)


@every_metric
@quick
@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_values_do_not_depend_on_batches_or_devices(name: str, sizes: list[int], seed: int) -> None:
    make, problem = METRICS[name]
    prediction, target = problem(sum(sizes), seed)
    whole = approximately(value_of(make(), (prediction, target)))
    batches = list(zip(prediction.split(sizes), target.split(sizes)))
    assert value_of(make(), *batches) == whole
    # Each batch is counted on a separate device, and the states are merged.
    merged = make()
    for batch in batches:
        other = make()
        other.update(*batch)
        merged.merge(pickle.loads(pickle.dumps(other.state)))
    assert merged.compute() == whole
    merged.reset()
    assert all(isnan(value) for value in merged.compute().values())
    assert value_of(merged, *batches) == whole
    assert merged.compute() == whole  # `compute` changes nothing


@every_metric
@quick
@given(mask=st.lists(st.booleans(), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_a_masked_sample_is_left_out(name: str, mask: list[bool], seed: int) -> None:
    make, problem = METRICS[name]
    prediction, target = problem(len(mask), seed)
    kept = torch.tensor(mask)
    left = value_of(make(), (prediction[kept], target[kept]))
    assert value_of(make(), (prediction, target, kept)) == approximately(left)


@every_metric
def test_metrics_need_no_gradient_and_can_be_pickled(name: str) -> None:
    make, problem = METRICS[name]
    metric, (prediction, target) = make(), problem(4, 0)
    metric.update(prediction.requires_grad_(), target)
    assert not metric.state.requires_grad
    assert list(metric.compute()) == list(metric.names)
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


@every_metric
def test_better_predictions_improve_every_value(name: str) -> None:
    make, problem = METRICS[name]
    prediction, target = problem(40, 3)
    ideal = prediction.clone()
    if name in ("segmentation", "taskonomy", "accuracy"):
        ideal = 9 * F.one_hot(target.clamp(min=0), 4).movedim(-1, 1)
    elif name in ("ner", "pos"):
        ideal = 9 * F.one_hot(target.clamp(min=0), 5)
    elif name in ("edges", "saliency"):
        ideal = torch.where(target == 1, 9.0, -9.0)
    else:
        ideal = target.clone()
    before, after = (
        value_of(make(), (prediction, target)),
        value_of(make(), (ideal.float(), target)),
    )
    for key in make().names:
        assert after[key] < before[key] if LOWER_IS_BETTER[key] else after[key] > before[key]


def test_every_name_belongs_to_a_metric() -> None:
    assert {n for make, _ in METRICS.values() for n in make().names} == set(LOWER_IS_BETTER)


@quick
@given(samples=st.integers(1, 4), seed=st.integers(0, 10**6), void=st.sampled_from([-1, 0, 255]))
def test_segmentation_equals_torchmetrics_jaccard_index(samples: int, seed: int, void: int) -> None:
    prediction, target = scored(samples, seed, (3, 4), void)
    if not (target != void).any():
        return
    values = value_of(metrics.Segmentation(4, void), (prediction, target))
    jaccard = tm.jaccard_index(
        prediction, target, task="multiclass", num_classes=4, ignore_index=void
    )
    accuracy = tm.accuracy(
        prediction, target, task="multiclass", num_classes=4, average="micro", ignore_index=void
    )
    expected = {"mIoU": jaccard.item(), "pixel_accuracy": accuracy.item()}
    assert values == pytest.approx(expected, rel=1e-5)
    only_miou = value_of(metrics.MeanIoU(4, void), (prediction, target))
    assert only_miou == {"mIoU": values["mIoU"]}


def test_miou_is_over_the_set_and_not_over_images() -> None:
    # Image 1: three pixels of class 0, one of them predicted as 1. Image 2: one pixel of each.
    target = torch.tensor([[0, 0, 0], [0, 1, -1]])
    logits = 9.0 * F.one_hot(torch.tensor([[0, 0, 1], [0, 1, 1]]), 2).movedim(-1, 1)
    # Over the set class 0 has 3 hits in a union of 4, class 1 has 1 in 2: (3/4 + 1/2) / 2 = 0.625.
    # A mean over images would be ((2/3 + 0) / 2 + 1) / 2 = 0.667.
    values = value_of(metrics.Segmentation(2), (logits[:1], target[:1]), (logits[1:], target[1:]))
    assert values == pytest.approx({"mIoU": 0.625, "pixel_accuracy": 4 / 5})


def test_taskonomy_segmentation_equals_torchs_mean() -> None:
    prediction, target = scored(5, 1, (3, 4), -1)
    expected = F.cross_entropy(prediction, target, WEIGHT, ignore_index=-1).item()
    values = value_of(
        metrics.TaskonomySegmentation(WEIGHT), *zip(prediction[:, None], target[:, None])
    )
    hits = (prediction.argmax(1) == target)[target != -1].float().mean().item()
    assert values == pytest.approx({"cross_entropy": expected, "pixel_accuracy": hits}, rel=1e-5)


def test_accuracy_and_total_error_equal_sums_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    accuracy = value_of(metrics.Accuracy(), (logits, torch.tensor([0, 1, 0, 1])))["accuracy"]
    assert accuracy == 0.75
    # 100 - 75, 100 - 90 and 100 - 100.
    assert total_error({"a": accuracy, "b": 0.9, "c": 1.0}) == pytest.approx(35)


def test_depth_is_over_pixels_and_not_over_batches() -> None:
    metric = metrics.Depth()
    metric.update(torch.tensor([[[[1.0, 7.0]]]]), torch.tensor([[[[2.0, 0.0]]]]))
    metric.update(torch.tensor([[[[5.0, 3.0, 8.0]]]]), torch.tensor([[[[4.0, 4.0, 8.0]]]]))
    # Errors 1 | 1, 1, 0 and relative 1/2 | 1/4, 1/4, 0; the pixel of depth 0 is void.
    assert metric.compute() == {"abs_error": 3 / 4, "rel_error": 1 / 4}


def test_means_of_errors_leave_out_void() -> None:
    prediction, target = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [0.0], [3.0]])
    assert value_of(metrics.AbsoluteError(), (prediction, target)) == {"abs_error": 1}
    assert value_of(metrics.AbsoluteError(void=0), (prediction, target)) == {"abs_error": 0.5}
    assert value_of(metrics.SquaredError(), (prediction, target))["squared_error"] == 5 / 3


def test_angles_equal_those_of_turned_normals() -> None:
    # Turned by 0, 10, 20 and 60 degrees in two batches, and one pixel without a normal. The median
    # is (10 + 20) / 2. The mean of the batches' medians would be (10 + 40) / 2.
    turns = np.deg2rad([0, 10, 20, 20, 60])
    turned = Rotation.from_rotvec(np.outer(turns, [1, 0, 0])).apply([0, 0, 1])
    truth = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 1]])
    batches = [
        (
            torch.tensor(7 * turned[rows].T[None, :, None]),
            torch.tensor(truth[rows].T[None, :, None]),
        )
        for rows in (slice(3), slice(3, 5))
    ]
    expected = {
        "mean_angle": 90 / 4,
        "median_angle": 15,
        "within_11.25": 2 / 4,
        "within_22.5": 3 / 4,
        "within_30": 3 / 4,
    }
    assert value_of(metrics.NormalAngles(), *batches) == pytest.approx(expected, rel=1e-5)
    assert value_of(metrics.MeanAngle(), *batches) == pytest.approx({"mean_angle": 22.5}, rel=1e-5)
    cosine = np.mean(np.cos(turns[[0, 1, 3, 4]]))
    assert value_of(metrics.Cosine(), *batches)["cosine"] == pytest.approx(cosine)


def test_equal_normals_have_angle_zero_and_no_normals_nan() -> None:
    target = normals(2, 0)[1]
    values = value_of(metrics.NormalAngles(), (target, target))
    assert list(values.values()) == [0, 0, 1, 1, 1]
    empty = value_of(metrics.NormalAngles(), (target, torch.zeros_like(target)))
    assert all(isnan(value) for value in empty.values())


def test_the_median_equals_numpys_over_the_whole_set() -> None:
    prediction, target = normals(30, 5)
    values = value_of(metrics.NormalAngles(), *zip(prediction.split(7), target.split(7)))
    unit = (prediction / prediction.norm(dim=1, keepdim=True)).double().numpy()
    cosine = np.clip((unit * target.numpy()).sum(1)[target.abs().sum(1).numpy() > 0], -1, 1)
    angles = np.rad2deg(np.arccos(cosine))
    assert values["median_angle"] == pytest.approx(np.median(angles), rel=1e-5)
    assert values["mean_angle"] == pytest.approx(angles.mean(), rel=1e-5)
    assert values["within_11.25"] == pytest.approx(np.mean(angles < 11.25))


@quick
@given(samples=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_odsf_is_the_best_of_torchmetrics_curve(samples: int, seed: int) -> None:
    logits, target = binary(samples, seed)
    precision, recall, _ = tm.classification.binary_precision_recall_curve(
        logits.double().sigmoid(),
        target.long(),
        thresholds=torch.linspace(0.01, 0.99, 99, dtype=torch.float64),
        ignore_index=255,
    )
    f = (2 * precision * recall / (precision + recall)).nan_to_num(0).max().item()
    if (target < 255).any():
        assert value_of(metrics.Edges(), (logits, target))["odsF"] == pytest.approx(f, rel=1e-5)


def test_edges_share_one_threshold_over_the_set() -> None:
    # Probabilities: 0.9 (edge) and 0.6 (none) in one image, 0.3 (edge) and 0.1 (none) in the other.
    # Each image has a threshold with F = 1. For both images, above 0.6: 1 hit of 2 edges, F = 2/3.
    # Above 0.1: 2 hits, 1 false, F = 4/5.
    logits = torch.tensor([[0.9, 0.6], [0.3, 0.1]]).logit()
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert value_of(metrics.Edges(), (logits, target))["odsF"] == pytest.approx(4 / 5)
    assert value_of(metrics.Edges(), (logits[:, 1:], target[:, 1:]))["odsF"] == 0  # without an edge


def test_saliency_equals_astmts_loop() -> None:
    logits, target = binary(6, 2)
    logits += 2 * (target == 1)
    target[0], logits[0] = 0, -9  # nothing is salient, nothing is predicted
    target[1] = 255
    by_threshold = []
    for threshold in np.linspace(0.2, 0.9, 15):
        ious = []
        for z, t in zip(logits.double().numpy(), target.numpy()):
            predicted, salient = (1 / (1 + np.exp(-z)) > threshold)[t < 255], (t == 1)[t < 255]
            if len(predicted):
                union = (predicted | salient).sum()
                ious.append((predicted & salient).sum() / union if union else 1)
        by_threshold.append(np.mean(ious))
    assert value_of(metrics.Saliency(), (logits, target))["mIoU"] == pytest.approx(
        max(by_threshold)
    )
    assert np.argmax(by_threshold) not in (0, 14)  # the best threshold is inside the range


def sentences(names: list[str], prediction: Tensor, target: Tensor) -> list[list[list[str]]]:
    return [
        [[names[i] for i, t in zip(row, true) if t != -100] for row, true in zip(which, target)]
        for which in (target, prediction.argmax(2))
    ]


@quick
@given(samples=st.integers(1, 4), seed=st.integers(0, 10**6), names=st.sampled_from([TAGS, POS]))
@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag", "ignore:Precision|Recall|F-score")
def test_span_f1_equals_seqevals(samples: int, seed: int, names: list[str]) -> None:
    prediction, target = tagged(samples, seed)
    if (target != -100).any():
        expected = f1_score(*sentences(names, prediction, target))
        assert value_of(metrics.SpanF1(names), (prediction, target))["f1"] == pytest.approx(
            expected
        )


def test_span_f1_equals_counts_by_hand() -> None:
    # True: PER at 0-1, LOC at 3. Predicted: PER at 0-1, and LOC at 2-3, which is a wrong span.
    true = torch.tensor([[1, 2, 0, 3, -100]])
    predicted = F.one_hot(torch.tensor([[1, 2, 3, 4, 1]]), 5)
    # One hit of 2 predicted and 2 true spans: F1 = 2 * 1 / (2 + 2).
    assert value_of(metrics.SpanF1(TAGS), (predicted, true)) == {"f1": 0.5}
    outside = torch.zeros(1, 3, dtype=torch.long)
    assert value_of(metrics.SpanF1(TAGS), (F.one_hot(outside, 5), outside)) == {"f1": 0}


STL = {"seg": {"mIoU": 0.5, "pixel_accuracy": 0.8}, "depth": {"abs_error": 0.4}}


def test_delta_p_is_in_percent() -> None:
    values = {"seg": {"mIoU": 0.55, "pixel_accuracy": 0.8}, "depth": {"abs_error": 0.3}}
    # seg: (+10% + 0%) / 2 = 5%; depth: -(0.3 - 0.4) / 0.4 = 25%. The mean over tasks is 15%. The
    # mean over all three metrics would be 11.7%.
    assert delta_p(values, STL) == pytest.approx(15)
    assert delta_p(STL, STL) == 0
    worse = {"seg": {"mIoU": 0.45, "pixel_accuracy": 0.8}, "depth": {"abs_error": 0.5}}
    assert delta_p(worse, STL) == pytest.approx(-15)


@pytest.mark.parametrize(
    ("values", "reference", "parts"),
    [
        ({"seg": STL["seg"]}, STL, ("tasks: got ['seg']", "['depth', 'seg']")),
        (
            {**STL, "depth": {"rel_error": 0.1}},
            STL,
            ("metrics of depth: got ['rel_error']", "['abs_error']"),
        ),
        ({}, {}, ("tasks: got []",)),
        ({"seg": {}}, {"seg": {}}, ("metrics of seg: got []",)),
        ({"seg": {"mIoU": 0.1}}, {"seg": {"mIoU": 0.0}}, ("mIoU of seg", "0.0")),
        ({"seg": {"mIoU": 0.1}}, {"seg": {"mIoU": float("nan")}}, ("mIoU of seg", "nan")),
        ({"seg": {"cosine": 0.1}}, {"seg": {"cosine": -0.1}}, ("cosine of seg", "-0.1")),
        ({"seg": {"beauty": 1.0}}, {"seg": {"beauty": 1.0}}, ("beauty of seg",)),
    ],
)
def test_delta_p_names_what_cannot_be_compared(
    values: metrics.Scores, reference: metrics.Scores, parts: tuple[str, ...]
) -> None:
    with refused(ConalError, *parts):
        delta_p(values, reference)


@pytest.mark.parametrize(
    ("metric", "prediction", "target"),
    [
        (metrics.Segmentation(3), (2, 3, 4), (2, 5)),
        (metrics.Accuracy(), (2, 3), (2, 1)),
        (metrics.Depth(), (2, 1, 4, 4), (2, 4, 4)),
        (metrics.NormalAngles(), (2, 3, 4, 4), (2, 1, 4, 4)),
        (metrics.MeanAngle(), (2, 2, 4, 4), (2, 2, 4, 4)),
        (metrics.SpanF1(TAGS), (2, 5, 6), (2, 6)),
    ],
)
def test_errors_of_shapes_name_both_shapes(
    metric: Metric, prediction: tuple[int, ...], target: tuple[int, ...]
) -> None:
    with refused(ValueError, prediction, target):
        metric.update(torch.zeros(prediction), torch.zeros(target))
    with refused(ValueError, "mask: got (3,)"):
        metrics.Depth().update(torch.ones(2, 1), torch.ones(2, 1), torch.ones(3))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with refused(ExtraError, "torchmetrics", ".[vision]"):
        metrics.Segmentation(3)
    with refused(ExtraError, "seqeval", ".[nlp]"):
        metrics.SpanF1(TAGS)
