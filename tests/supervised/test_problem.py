"""Every data set as a problem, on tiny files in its real layout; presets; errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conal_rl.config import load_config
from conal_rl.config.supervised import (
    DataConfig,
    ModelConfig,
    SupervisedConfig,
    SupervisedEvaluationConfig,
)
from conal_rl.core import Tree, TreeNetwork
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.supervised.data.common import Batch, Joined, Only, SharedLoader, TaskLoaders
from conal_rl.supervised.data.files import DataError
from conal_rl.supervised.data.text import IGNORED
from conal_rl.supervised.decoders import Heads
from conal_rl.supervised.encoders import resnet_chain
from conal_rl.supervised.problem import Part, Problem, make_problem
from tests.helpers.datasets import write_array_tree, write_taskonomy
from tests.helpers.refusals import refused
from tests.helpers.supervised_sets import (
    COUNTS,
    METRICS,
    SIZES,
    SMALL,
    TEXT,
    languages,
    options_of,
    write_bert,
)

PARTS: tuple[Part, ...] = ("train", "validation", "both", "test")
LENGTHS = {  # train, validation, both, test
    "nyuv2": (8, 2, 10, 3),
    "cityscapes": (8, 2, 10, 3),
    "pascal_context": (3, 1, 4, 4),
    "taskonomy": (4, 1, 5, 2),
    "celeba9": (4, 4, 8, 4),
    "celeba40": (4, 4, 8, 4),
    "digits": (1074, 359, 1433, 364),
    "terrain": (450, 24, 474, 24),
}
FILES = (*SIZES, "celeba9", "celeba40")


def preset(name: str, *options: str, tasks: tuple[str, ...] | None = None) -> SupervisedConfig:
    config = load_config(name, options)
    assert isinstance(config, SupervisedConfig)
    if tasks is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=tasks))


def tiny(name: str, root: Path, *more: str) -> Problem:
    return make_problem(preset(name, *options_of(name, root), *more))


def refusal(name: str, *options: str, tasks: tuple[str, ...] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        make_problem(preset(name, *options, tasks=tasks))
    message = str(caught.value)
    assert "\n" not in message
    return message


def network_of(problem: Problem) -> tuple[TreeNetwork, Heads]:
    tree = Tree.shared(problem.tasks, len(problem.chain))
    heads = Heads({name: task.head() for name, task in problem.tasks.items()})
    return TreeNetwork(tree, problem.chain), heads


def losses(problem: Problem, predictions: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return {
        name: task.loss(predictions[name], batch.targets[name], mask=batch.masks[name])
        for name, task in problem.tasks.items()
    }


@pytest.mark.parametrize("name", METRICS)
def test_every_set_has_finite_losses_and_metrics(name: str, tmp_path: Path) -> None:
    if name in TEXT:
        pytest.importorskip("transformers")
    problem = tiny(name, tmp_path, "--search.validation-share", "0.2")
    assert list(problem.tasks) == list(METRICS[name])
    network, heads = network_of(problem)
    problem.prepare(network)
    batch = next(iter(problem.loader("both", 2, True)))
    assert batch.inputs.shape[:2] == (len(problem.tasks) if name in TEXT else 1, 2)
    task_losses = losses(problem, heads(network(batch.inputs)), batch)
    weights = [problem.tasks[task].weight for task in task_losses]
    sum(w * loss for w, loss in zip(weights, task_losses.values(), strict=True)).backward()  # type: ignore[union-attr]
    assert all(loss.isfinite() for loss in task_losses.values())
    for parameter in (*network.parameters(), *heads.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert sum(float(p.grad.norm()) for p in network.parameters() if p.grad is not None) > 0

    metrics = {name: task.metric() for name, task in problem.tasks.items()}
    network.eval()
    heads.eval()
    for batch in problem.loader("test", 3, False):
        with torch.no_grad():
            predictions = heads(network(batch.inputs))
        for task, metric in metrics.items():
            metric.update(predictions[task], batch.targets[task], batch.masks[task])
    assert {task: metric.names for task, metric in metrics.items()} == METRICS[name]
    values = [value for metric in metrics.values() for value in metric.compute().values()]
    assert torch.tensor(values).isfinite().all()


def items(loader: SharedLoader | TaskLoaders, task: str) -> list[bytes]:
    """The inputs as bytes, to compare them; all written files are different."""
    rows = [x for batch in loader for x in batch.inputs[0]]
    return [row.numpy().tobytes() for row in rows]


@pytest.mark.parametrize("name", LENGTHS)
def test_parts_are_disjoint_and_complete(name: str, tmp_path: Path) -> None:
    share = "0.25" if name == "pascal_context" else "0.2"
    problem = tiny(name, tmp_path, "--search.validation-share", share)
    first = next(iter(problem.tasks))
    for training in (False, True):
        size = 1 if training else 3
        parts = {part: items(problem.loader(part, size, training), first) for part in PARTS}
        assert tuple(len(inputs) for inputs in parts.values()) == LENGTHS[name]
        assert sorted(parts["train"] + parts["validation"]) == sorted(parts["both"])
        if name != "digits" and not training:  # some digits are equal
            every = parts["both"] + parts["test"]
            unique = {"taskonomy": 5, "nyuv2": 10, "cityscapes": 10}  # val repeats images of train
            assert len(set(every)) == unique.get(name, len(every))


def test_taskonomys_validation_is_used_if_it_exists(tmp_path: Path) -> None:
    options = options_of("taskonomy", tmp_path)
    listing = tmp_path / "taskonomy.json"
    rows = json.loads(listing.read_text())["train"]
    listing.write_text(json.dumps({"train": rows[:2], "val": rows[2:3], "test": rows[3:]}))
    problem = make_problem(preset("taskonomy", *options))
    assert [problem.loader(part, 1, False).items for part in PARTS] == [2, 1, 3, 2]


def test_training_batches_are_full_and_shuffled_by_seed(tmp_path: Path) -> None:
    options = options_of("nyuv2", tmp_path)
    loaders = [
        make_problem(preset("nyuv2", *options, "--seed", seed)).loader("both", 4, True)
        for seed in ("0", "0", "1")
    ]
    assert [len(batch.inputs[0]) for batch in loaders[0]] == [4, 4]
    orders = [items(loader, "depth") for loader in loaders]
    assert orders[0] == orders[1] != orders[2]
    loaders[0].set_epoch(1)
    assert items(loaders[0], "depth") != orders[0]


def test_only_training_is_augmented(tmp_path: Path) -> None:
    options = [*options_of("nyuv2", tmp_path), "--data.augment"]
    problem = make_problem(preset("nyuv2", *options))
    plain = set(items(problem.loader("both", 5, False), "depth"))
    for part in PARTS[:3]:
        assert set(items(problem.loader(part, 1, False), "depth")) <= plain
        assert not set(items(problem.loader(part, 1, True), "depth")) <= plain


@pytest.mark.parametrize("name", TEXT)
def test_texts_of_unequal_languages_are_read_once(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    problem = tiny(name, tmp_path)
    for part, splits in (("validation", ("dev",)), ("both", ("train", "dev")), ("test", ("test",))):
        lengths = [sum(counts) for counts in zip(*(COUNTS[split] for split in splits), strict=True)]
        batches = list(problem.loader(part, 2, False))  # type: ignore[arg-type]
        seen = [sum(int(b.masks[of].sum()) for b in batches) for of in languages(name)]
        assert seen == lengths
        training = problem.loader(part, 2, True)  # type: ignore[arg-type]
        assert len(training) == max(lengths) // 2
        assert all(mask.all() for batch in training for mask in batch.masks.values())
    for batch in batches:
        for of, target in batch.targets.items():
            rows = target.view(len(target), -1)
            assert not rows[~batch.masks[of]].any()
            assert (rows[batch.masks[of]] != IGNORED).any(dim=1).all()


def test_chosen_tasks_keep_their_order(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    subsets = {
        "nyuv2": ("normals", "segmentation"),
        "cityscapes": ("depth",),
        "pascal_context": ("edges", "semseg"),
        "taskonomy": ("edges", "depth"),
        "celeba9": ("Young", "Bald"),
        "digits": ("ink", "digit"),
        "terrain": ("segmentation",),
        "pawsx": ("zh", "en"),
    }
    for name, tasks in subsets.items():
        root = tmp_path / name
        problem = make_problem(preset(name, *options_of(name, root), tasks=tasks))
        batch = next(iter(problem.loader("test", 2, False)))
        assert tuple(problem.tasks) == tuple(batch.targets) == tuple(batch.masks) == tasks
        network, heads = network_of(problem)
        heads.eval()
        task_losses = losses(problem, heads(network.eval()(batch.inputs)), batch)
        assert all(loss.isfinite() for loss in task_losses.values())


def test_losses_and_metrics_leave_out_void(tmp_path: Path) -> None:
    problem = tiny("taskonomy", tmp_path)
    assert [task.weight for task in problem.tasks.values()] == [1, 3, 2, 7, 7]
    logits = torch.randn(1, 17, 2, 2)
    void = problem.tasks["segmentation"].loss(logits, torch.full((1, 2, 2), -1))
    assert float(void) == 0
    depths = torch.tensor([0.5, 255.0]).view(1, 1, 1, 2)
    assert float(problem.tasks["depth"].loss(torch.zeros(1, 1, 1, 2), depths)) == 0.5
    metric = problem.tasks["depth"].metric()
    metric.update(torch.zeros(1, 1, 1, 2), depths)
    assert metric.compute() == {"abs_error": 0.5}
    terrain = tiny("terrain", tmp_path)
    flat = torch.zeros(1, 1, 1, 2)
    assert float(terrain.tasks["depth"].loss(flat + 1, flat)) == 1  # 0 is a valid depth
    nyuv2 = tiny("nyuv2", tmp_path / "nyuv2")
    assert float(nyuv2.tasks["depth"].loss(flat + 1, flat)) == 0


def test_taskonomy_is_cut_out_of_256(tmp_path: Path) -> None:
    write_taskonomy(tmp_path)
    for size, side in ((None, 224), ("240", 240), ("16", 16)):
        given = [] if size is None else ["--data.size", size, size]
        config = preset("taskonomy", *SMALL, "--data.root", str(tmp_path), *given)
        dataset: Any = make_problem(config).loader("test", 1, False).dataset  # type: ignore[union-attr]
        assert dataset[0].input.shape == (3, side, side)
        assert dataset.dataset.size == (16 if side == 16 else 256)


def test_a_resnet_starts_with_its_pretrained_weights(tmp_path: Path) -> None:
    options = options_of("celeba9", tmp_path)
    source = TreeNetwork(Tree.shared(["a"], 5), resnet_chain(18))
    names = ("", "layer1.", "layer2.", "layer3.", "layer4.")
    state = {
        names[int(number)] + rest: tensor
        for key, tensor in source.state_dict().items()
        for _, number, _, _, rest in [key.split(".", 4)]
    }
    torch.save(state, tmp_path / "resnet.pt")
    chosen = ["--agent.encoder", "resnet18", "--agent.stem", "imagenet"]
    weights = ["--agent.pretrained", str(tmp_path / "resnet.pt")]
    problem = make_problem(preset("celeba9", *options, *chosen, *weights))
    network, _ = network_of(problem)
    assert not torch.equal(first_weight(network), first_weight(source))
    problem.prepare(network)
    assert torch.equal(first_weight(network), first_weight(source))


def first_weight(network: nn.Module) -> Tensor:
    return next(network.parameters())


def test_bert_needs_weights_unless_made_from_its_config(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    options = [o for o in options_of("xnli", tmp_path) if o != "--agent.bert-from-config"]
    with refused(CheckpointError, tmp_path / "bert", "model.safetensors"):
        make_problem(preset("xnli", *options))


def test_fields_that_do_not_fit_the_set_are_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for name in ("nyuv2", "celeba9", "taskonomy", "pascal_context"):
        message = refusal(name)
        assert message.startswith("data.root: got no value") and "--data.root DIR" in message
    nyuv2 = options_of("nyuv2", tmp_path / "nyuv2")
    text = options_of("xnli", tmp_path / "text")
    celeba = options_of("celeba9", tmp_path / "celeba")
    small = options_of("digits", tmp_path)
    unknown = [
        ("nyuv2", nyuv2, "edges", "se"),
        ("celeba9", celeba, "Nice", "5"),
        ("xnli", text, "fr", "de, en, es"),
        ("digits", small, "all", "digit"),
    ]
    for name, options, task, known in unknown:
        message = refusal(name, *options, tasks=(task,))
        assert message.startswith(f"data.tasks: got {task!r}, expected some of {known}")
    cases: list[tuple[str, Sequence[str], str]] = [
        ("celeba9", [*celeba, "--data.size", "8", "9"], "data.size: got [8, 9], expected a square"),
        (
            "digits",
            [*small, "--data.size", "9", "9"],
            "data.size: got [9, 9], expected no value",
        ),
        ("nyuv2", [*nyuv2, "--agent.encoder", "bert"], "agent.encoder: got 'bert', expected small"),
        (
            "nyuv2",
            [*nyuv2, "--agent.batch-size", "1"],
            "agent.batch_size: got 1, expected 2 or more",
        ),
        (
            "digits",
            [*small, "--agent.encoder", "resnet18"],
            "agent.encoder: got 'resnet18', expected small",
        ),
        ("digits", [*small, "--agent.pretrained", "x"], "agent.pretrained: got 'x'"),
        (
            "xnli",
            [*text, "--agent.encoder", "small"],
            "agent.encoder: got 'small', expected bert",
        ),
        ("xnli", [*text, "--agent.pretrained", "x"], "agent.pretrained: got 'x'"),
        ("xnli", [*text, "--data.tokens", "17"], "data.tokens: got 17, expected 5 to 16"),
        (
            "xnli",
            [*text, "--agent.modules", "3"],
            "agent.modules: got 3, expected 1 to 2",
        ),
        ("xnli", [*text, "--data.size", "9", "9"], "data.size: got [9, 9], expected no value"),
        ("xnli", ["--data.root", "x"], "agent.bert: got no value"),
        ("xnli", text[2:], "data.root: got no value, expected the folder with xnli/train-"),
    ]
    for name, given, message in cases:
        assert refusal(name, *given).startswith(message), message


def test_a_vocabulary_of_a_different_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    text = options_of("xnli", tmp_path / "text")
    other = tmp_path / "other"
    write_bert(other, vocab_size=4)
    message = refusal("xnli", *text, "--agent.bert", str(other))
    assert message.startswith("agent.bert: got 8 ") and f"{other}/vocab.txt" in message
    assert "at most 4" in message
    write_bert(other, pad_token_id=3)
    message = refusal("xnli", *text, "--agent.bert", str(other))
    assert message.startswith("agent.bert: got id 0 ") and f"{other}/vocab.txt" in message
    assert "expected 3" in message


def test_a_part_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for name, size, samples in (("digits", 360, 359), ("xnli", 4, 3)):
        problem = tiny(name, tmp_path)
        part = f"at most {samples}, the samples in the validation part"
        with refused(ConfigError, f"agent.batch_size: got {size}", part):
            problem.loader("validation", size, True)
        problem.loader("validation", size, False)
    problem = tiny("nyuv2", tmp_path / "nyuv2")
    with refused(ConfigError, "agent.batch_size: got 20", "the training part"):
        problem.loader("train", 20, True)
    with refused(ConfigError, "agent.batch_size: got 20", "training and validation"):
        problem.loader("both", 20, True)


def test_a_missing_test_part_is_found_before_training(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_array_tree(tmp_path / "nyuv2", "train")
    with refused(DataError, tmp_path / "nyuv2" / "val"):
        make_problem(preset("nyuv2", *SMALL, "--data.root", str(tmp_path / "nyuv2")))
    options = options_of("panx", tmp_path)
    (tmp_path / "panx" / "test-zh.tsv").unlink()
    with refused(DataError, tmp_path / "panx" / "test-zh.tsv", "no file"):
        make_problem(preset("panx", *options))


def test_joined_and_chosen_tasks_follow_the_epoch(tmp_path: Path) -> None:
    write_array_tree(tmp_path, "train", 4)
    from conal_rl.supervised.data.nyuv2 import NYUv2

    data = NYUv2(tmp_path, "train", augment=True, size=(6, 10))
    both = Only(Joined([data, data]), ["normals", "depth"])
    assert len(both) == 8 and list(both.tasks) == list(both[5].targets) == ["normals", "depth"]
    assert torch.equal(both[5].input, data[1].input)
    for epoch in range(9):
        later = both.at_epoch(epoch)[6]
        assert torch.equal(later.input, data.at_epoch(epoch)[2].input)


SETTINGS: dict[str, tuple[Any, ...]] = {
    "nyuv2": ("resnet50", True, "adam", 1e-4, 1e-5, "halve", 8, 99 * 200, 99 * 100),
    "cityscapes": ("resnet50", True, "adam", 1e-4, 1e-5, "halve", 64, 46 * 200, 46 * 100),
    "pascal_context": ("resnet18", True, "adam", 1e-4, 1e-4, "poly", 12, 416 * 300, None),
    "taskonomy": ("resnet34", False, "adam", 1e-4, 1e-5, "constant", 16, 50_000, None),
    "celeba9": ("resnet18", False, "sgd", 5e-4, 0, "halve", 256, 635 * 100, 635 * 15),
    "celeba40": ("resnet18", False, "sgd", 5e-4, 0, "halve", 256, 635 * 100, 635 * 15),
    "pawsx": ("bert", False, "adamw", 2e-5, 0, "constant", 32, 49_401 // 32 * 5, None),
    "xnli": ("bert", False, "adamw", 2e-5, 0, "constant", 32, 392_702 // 32 * 5, None),
    "panx": ("bert", False, "adamw", 2e-5, 0, "constant", 32, 625 * 10, None),
    "udpos": ("bert", False, "adamw", 2e-5, 0, "constant", 32, 21_253 // 32 * 10, None),
}
"""Encoder, dilated, optimiser, learning rate, decay, schedule, batch, steps per half, halving."""


@pytest.mark.parametrize("name", SETTINGS)
def test_presets_have_the_published_settings(name: str) -> None:
    config = preset(name)
    agent, search = config.agent, config.search
    encoder, dilated, optimizer, rate, decay, schedule, batch, steps, halving = SETTINGS[name]
    assert (agent.encoder, agent.dilated, agent.optimizer) == (encoder, dilated, optimizer)
    assert (agent.learning_rate, agent.weight_decay, agent.schedule) == (rate, decay, schedule)
    assert (agent.batch_size, search.steps, config.total_steps) == (batch, steps, 2 * steps)
    assert halving is None or agent.halve_every == halving
    assert (search.gate_learning_rate, agent.max_grad_norm) == (5e-5, 5)
    if name in ("nyuv2", "cityscapes", "pascal_context"):
        assert search.validation_share == 0.2 and not config.data.augment
        assert agent.aspp_rates == (12, 24, 36)
    if name.startswith("celeba"):
        assert (agent.stem, agent.select, agent.patience) == ("3x3", True, 10)
        assert config.evaluation.every == 635 and search.method == "conal_pro"
    if name in TEXT:
        assert (config.data.tokens, agent.dropout, agent.modules) == (128, 0.1, 4)


def test_a_config_in_python_makes_the_same_problem() -> None:
    config = SupervisedConfig(
        name="mine",
        total_steps=10,
        data=DataConfig(set="digits"),
        agent=ModelConfig(tree="shared"),
        evaluation=SupervisedEvaluationConfig(every=5),
    )
    assert list(make_problem(config).tasks) == list(METRICS["digits"])


@pytest.mark.slow
def test_problems_do_not_import_optional_packages() -> None:
    heavy = ["transformers", "sklearn", "PIL", "scipy", "torchmetrics", "seqeval"]
    code = (
        f"import sys, conal_rl.supervised.images, conal_rl.supervised.text; "
        f"conal_rl.supervised.metrics.NormalAngles(); conal_rl.supervised.metrics.Accuracy(); "
        f"print(*[m for m in {heavy} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
