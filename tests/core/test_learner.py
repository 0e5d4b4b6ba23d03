"""A learner's steps, and that one restored from its state learns as if nothing had happened."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from conal_rl.core import (
    ConalProStage,
    ConalSearch,
    LTBSearch,
    ReconSearch,
    SearchNetwork,
    Structure,
    Tree,
    linear_chain,
)
from conal_rl.core.encoder import EncoderNetwork, make_encoder
from conal_rl.core.findings import findings, gate_weights, log_scalars
from conal_rl.core.learner import Learner, LearnerSettings
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.optimizers import optimizer_tensors, restore_optimizer, set_learning_rate

TASKS = ("a", "b", "c")
FEATURES, WIDTH = 4, 6
SHARED, BRANCHED = Tree.shared(TASKS, 2), Tree.from_branch_points([3, 2, 3], 2, TASKS)
ADAM = partial(torch.optim.Adam, lr=0.05)


class Regression(EncoderNetwork):
    """An encoder with a head per task, and the learner of both."""

    def __init__(
        self,
        structure: Structure,
        seed: int = 0,
        make_optimizer: Any = ADAM,
        scales: bool = False,
        **settings: Any,
    ):
        super().__init__()
        torch.manual_seed(seed)
        depth = structure.depth if isinstance(structure, Tree) else 2
        self.encoder = make_encoder(structure, TASKS, linear_chain(FEATURES, [WIDTH] * depth))
        self.head = LinearStack(range(len(TASKS)), WIDTH, 1, activation=False)
        how = LearnerSettings(**{"rule": "any_pair", "gate_learning_rate": 0.05, **settings})
        self.learner = Learner(
            self.encoder, self.weights(), structure, TASKS, make_optimizer, how, scales=scales
        )

    def losses(self, scale: float = 1.0) -> Tensor:
        x, y = torch.randn(len(TASKS), 8, FEATURES), torch.randn(len(TASKS), 8, 1)
        return scale * (self.head(self.encoder(x)) - y).square().mean(dim=(1, 2))

    def learn(self, seeds: range, scale: float = 1.0) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            with self.learner.capture():
                losses = self.losses(scale)
            self.learner.step(losses, max_norm=1.0)
            if self.learner.gates is not None:
                self.learner.step_gates(self.losses(scale))


# States


WAYS: dict[str, tuple[Structure, dict[str, Any]]] = {
    "plain": (SHARED, {}),
    "sgd": (SHARED, {"make_optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}),
    "hold": (BRANCHED, {"hold": True, "rule": "consensus", "margin": 0.1, "smoothing": 0.5}),
    "count": (SHARED, {"hold": True, "rule": "none"}),
    "aggregation": (BRANCHED, {"weighting": "mgda"}),
    "random": (SHARED, {"weighting": "random"}),
    "uncertainty": (SHARED, {"weighting": "uncertainty"}),
    "scaled": (SHARED, {"scales": True}),
    "conal": (ConalSearch(), {"specific_decay": 0.1, "smoothing": 0.9}),
    "conal, scaled": (ConalSearch(), {"scales": True, "weighting": "uncertainty"}),
    "conal_pro": (ConalProStage.first(3), {"rule": "and_deeper", "smoothing": 0.5}),
    "ltb": (LTBSearch(2), {"rule": "none", "gumbel_temperature": (1.0, 0.1)}),
    "recon": (ReconSearch(1), {}),
}


def everything(problem: Regression) -> dict[str, Tensor]:
    tensors, counters = problem.learner.state()
    named = {f"{group}/{n}": t for group, of_group in tensors.items() for n, t in of_group.items()}
    scales = {
        f"scale/{name}": torch.tensor(state["scale"]) for name, state in counters["scalers"].items()
    }
    return copy.deepcopy({**problem.state_dict(), **named, **scales})


@pytest.mark.parametrize("way", WAYS)
def test_a_restored_learner_learns_as_if_uninterrupted(way: str) -> None:
    structure, settings = WAYS[way]
    whole, resumed, forgetful = (Regression(structure, seed, **settings) for seed in range(3))
    if settings.get("scales"):  # beyond single precision's 2^128: the scales are halved
        whole.learn(range(2), scale=2.0**120)
    whole.learn(range(5))
    tensors, counters = copy.deepcopy(whole.learner.state())
    for each in (resumed, forgetful):
        each.load_state_dict(whole.state_dict())
    resumed.learner.restore(tensors, json.loads(json.dumps(counters)))
    for each in (whole, resumed, forgetful):
        each.learner.anneal(0.5)
        each.learn(range(5, 9))
    found, expected, without = map(everything, (resumed, whole, forgetful))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert any(not torch.equal(without[name], expected[name]) for name in without)
    assert findings(resumed.learner) == findings(whole.learner)
    if not isinstance(structure, ReconSearch | Tree):
        assert resumed.learner.tree() == whole.learner.tree()


def test_a_state_has_a_group_for_each_part() -> None:
    groups = {"optimizer_weights", "loss_weights"}
    assert Regression(SHARED).learner.state()[0].keys() == groups
    searching = Regression(ConalSearch(), scales=True).learner.state()
    assert searching[0].keys() == groups | {"optimizer_gates", "conflict"}
    assert searching[1].keys() == {"scalers", "noticing"}
    assert searching[1]["scalers"].keys() == {"weights", "gates"}


def test_a_scaler_begins_afresh_without_a_saved_one() -> None:
    plain, scaled = Regression(SHARED), Regression(SHARED, scales=True)
    plain.learn(range(2))
    scaled.learner.restore(*plain.learner.state())
    assert scaled.learner.scaler is not None
    assert scaled.learner.scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()
    assert optimizer_tensors(scaled.learner.optimizer).keys() >= {"0.exp_avg"}


@pytest.mark.parametrize(
    "group", ["optimizer_weights", "optimizer_gates", "loss_weights", "conflict"]
)
def test_a_state_without_a_group_is_refused(group: str) -> None:
    learner = Regression(ConalSearch()).learner
    tensors, counters = learner.state()
    del tensors[group]
    with pytest.raises(KeyError, match=group):
        learner.restore(tensors, counters)


def test_moments_of_other_parameters_are_refused() -> None:
    def optimizer(*sizes: int) -> torch.optim.Adam:
        weights = [torch.ones(size, requires_grad=True) for size in sizes]
        sum(weight.sum() for weight in weights).backward()  # type: ignore[union-attr]
        adam = torch.optim.Adam(weights)
        adam.step()
        return adam

    moments = optimizer_tensors(optimizer(2, 3))
    restore_optimizer(optimizer(2, 3), moments)
    for other in (optimizer(3, 2), optimizer(2)):
        with pytest.raises(ValueError, match="moments"):
            restore_optimizer(other, moments)


# Settings


def test_gates_and_weights_have_rates_of_their_own() -> None:
    problem = Regression(ConalSearch(), gate_learning_rate=0.25, weighting="uncertainty")
    learner = problem.learner
    set_learning_rate(learner.optimizer, 0.5)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {0.5}
    before = {name: p.detach().clone() for name, p in problem.named_parameters()}
    learner.step_gates(problem.losses())
    moved = {n for n, p in problem.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"encoder.gates"}
    step = (problem.encoder.get_parameter("gates") - before["encoder.gates"]).abs()
    torch.testing.assert_close(step, torch.full_like(step, 0.25), rtol=1e-3, atol=0)


def test_the_temperature_of_gumbel_gates_falls() -> None:
    cooled = Regression(LTBSearch(2), rule="none", gumbel_temperature=(2.0, 0.5))
    for left, expected in ((1.0, 2.0), (0.5, 1.25), (0.0, 0.5)):
        cooled.learner.anneal(left)
        assert isinstance(cooled.encoder, SearchNetwork)
        assert cooled.encoder.gumbel_temperature == expected
    softmax = Regression(ConalSearch())
    softmax.learner.anneal(0.5)
    assert isinstance(softmax.encoder, SearchNetwork)
    assert softmax.encoder.gumbel_temperature is None


def test_losses_other_than_likelihoods_keep_equal_weights() -> None:
    network = make_encoder(SHARED, TASKS, linear_chain(FEATURES, [WIDTH] * 2))
    weights = list(network.parameters())
    for likelihoods in (True, False):
        settings = LearnerSettings("none", weighting="uncertainty")
        learner = Learner(network, weights, SHARED, TASKS, ADAM, settings, likelihoods)
        assert bool(list(learner.loss_weights.parameters())) == likelihoods


@pytest.mark.parametrize(
    ("structure", "settings", "named"),
    [(SHARED, {"weighting": "fair"}, "weighting"), (LTBSearch(2), {"rule": "and_deeper"}, "rule")],
)
def test_settings_that_do_not_fit_are_refused(
    structure: Structure, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named}: got '{settings[named]}'"):
        Regression(structure, **settings)


# Findings


def test_conflicts_are_of_the_layers_that_the_tree_shares() -> None:
    """Recon's trees may share a layer behind one that is each task's own."""
    own, shared = [[task] for task in TASKS], [TASKS]
    tree = Tree.from_groups(TASKS, [own, shared, own, shared], may_rejoin=True)
    problem = Regression(tree, hold=True)
    problem.learn(range(1))
    assert findings(problem.learner)["layers"] == [2, 4]
    tags = [tag for tag in log_scalars(problem.learner, "actor") if "conflicts" in tag]
    assert tags == [f"tree_conflicts_actor/negative/{layer}" for layer in (2, 4)]


def test_a_tree_has_no_gates_to_report() -> None:
    assert gate_weights(Regression(SHARED).learner) == {}
    expected = dict.fromkeys(TASKS, pytest.approx([1 / 3] * 3))
    assert gate_weights(Regression(ConalSearch()).learner) == expected
