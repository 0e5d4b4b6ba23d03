"""CoNAL-Pro: searches worked by hand, stages against loops over tasks, memory, what they find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conal_rl.core import (
    ConalProStage,
    Supernet,
    Tree,
    TreeNetwork,
    linear_chain,
    module_chain,
)
from conal_rl.core.conal_pro import StageNetwork
from conal_rl.core.layers import Layer, LayerFactory
from conal_rl.core.tree_network import parameter_count
from tests.helpers.reference import (
    IN,
    Signs,
    check_task_gradients,
    make_chain,
    make_input,
    module_slice,
    randomize,
    stage_outputs,
    tree_outputs,
)
from tests.helpers.tiers import first_quick

KINDS = ["plain", "norm", "conv"]


def choose(network: StageNetwork, joining: str) -> None:
    """Gates that are one-hot: the open tasks named here join, the others leave."""
    with torch.no_grad():
        for gates, name in zip(network.gates, network.choices, strict=True):
            gates.copy_(torch.tensor([1000.0, 0.0] if name in joining else [0.0, 1000.0]))


def grouped(layers: str) -> Tree:
    """A tree of one-letter tasks: "abc | ab c" is two layers, of which c leaves the first."""
    groups = [layer.split() for layer in layers.split("|")]
    return Tree.from_groups(sorted("".join(groups[0])), groups)


# Searches by hand. Trees are written layer by layer, tasks that share a module in one word.

Step = tuple[str, str, str, str]  # open tasks, joint tree, who joins, tree of the gates


def walk(tasks: str, modules: int, steps: list[Step]) -> None:
    """Go through the stages that are written out; nothing may come after them."""
    stage: ConalProStage | None = ConalProStage.first(len(tasks))
    points: list[int | None] = [None] * len(tasks)
    for number, (unsettled, joint, joining, tree) in enumerate(steps, start=1):
        assert stage == ConalProStage(number, tuple(points))
        network = stage.network(tasks, linear_chain(IN, [4] * modules))
        assert (network.point, network.tasks) == (modules + 2 - number, tuple(tasks))
        assert network.choices == tuple(unsettled)
        assert torch.equal(network.gates, torch.ones(len(unsettled), 2))
        assert network.joint.tree == grouped(joint)
        choose(network, joining)
        assert network.tree() == network.derive().tree == grouped(tree)
        stage = network.next_stage()
        points = [network.point if t in joining else p for t, p in zip(tasks, points)]
    assert stage is None


@pytest.mark.parametrize(
    "last, tree",
    [("d", "abcd | abc d | ab c d"), ("", "abc d | abc d | ab c d")],
    ids=["joins", "leaves"],
)
def test_stages_of_four_tasks_equal_those_by_hand(last: str, tree: str) -> None:
    """a and b stay; c has the branch from point 3 for itself, which is its own; d is left over."""
    walk(
        "abcd",
        3,
        [
            ("abcd", "abcd | abcd | abcd", "ab", "abcd | abcd | ab c d"),
            ("cd", "abcd | abcd | ab cd", "c", "abcd | abc d | ab c d"),
            ("d", "abcd | abc d | ab c d", last, tree),
        ],
    )


def test_stages_of_six_tasks_equal_those_by_hand() -> None:
    """In the second stage nobody joins; the last task leaves even the last joint branch."""
    walk(
        "abcdef",
        5,
        [
            (
                "abcdef",
                "abcdef | abcdef | abcdef | abcdef | abcdef",
                "af",
                "abcdef | abcdef | abcdef | abcdef | af b c d e",
            ),
            (
                "bcde",
                "abcdef | abcdef | abcdef | abcdef | af bcde",
                "",
                "abcdef | abcdef | abcdef | af b c d e | af b c d e",
            ),
            (
                "bcde",
                "abcdef | abcdef | abcdef | af bcde | af bcde",
                "bc",
                "abcdef | abcdef | abcf d e | af bc d e | af bc d e",
            ),
            (
                "de",
                "abcdef | abcdef | abcf de | af bc de | af bc de",
                "d",
                "abcdef | abcdf e | abcf d e | af bc d e | af bc d e",
            ),
            (
                "e",
                "abcdef | abcdf e | abcf d e | af bc d e | af bc d e",
                "",
                "abcdf e | abcdf e | abcf d e | af bc d e | af bc d e",
            ),
        ],
    )


def test_a_search_ends_early_if_all_tasks_are_settled() -> None:
    steps = [
        ("abcdef", "abcdef | abcdef | abcdef", "c", "abcdef | abcdef | a b c d e f"),
        ("abdef", "abcdef | abcdef | abdef c", "abdef", "abcdef | abcdef | abdef c"),
    ]
    walk("abcdef", 3, steps)


@pytest.mark.parametrize("tasks, modules", [("abcd", 3), ("abcdef", 5), ("ab", 1)])
def test_when_everyone_joins_in_the_first_stage_it_is_the_last(tasks: str, modules: int) -> None:
    shared = " | ".join([tasks] * modules)
    walk(tasks, modules, [(tasks, shared, tasks, shared)])


@pytest.mark.parametrize("tasks, modules", [("abcd", 3), ("abcdef", 5), ("ab", 1)])
def test_when_nobody_ever_joins_all_have_whole_encoders(tasks: str, modules: int) -> None:
    def left(common: int) -> str:
        return " | ".join([tasks] * common + [" ".join(tasks)] * (modules - common))

    shared = left(modules)
    steps = [(tasks, shared, "", left(modules - number)) for number in range(1, modules + 1)]
    walk(tasks, modules, steps)
    assert grouped(steps[-1][3]) == Tree.independent(tasks, modules)


def test_joining_wins_a_tie() -> None:
    network = ConalProStage.first(3).network("abc", linear_chain(IN, [4, 4]))
    assert network.strongest() == [0, 0, 0]
    assert (network.tree(), network.next_stage()) == (Tree.shared("abc", 2), None)
    with torch.no_grad():
        network.gates.copy_(torch.tensor([[2.0, 2.0], [0.0, 0.1], [0.1, 0.0]]))
    assert network.tree() == grouped("abc | ac b")
    assert network.next_stage() == ConalProStage(2, (3, None, 3))


# One stage as a network


@st.composite
def stages(draw: st.DrawFn, min_tasks: int = 1) -> tuple[ConalProStage, int]:
    """Any stage, and the length of a chain that it fits."""
    depth = draw(st.integers(1, 4))
    tasks = draw(st.integers(min_tasks, 4))
    number = draw(st.integers(1, depth))
    settled = st.none() | st.sampled_from(range(depth + 3 - number, depth + 2) or [None])
    points = draw(st.lists(settled, min_size=tasks, max_size=tasks))
    points[draw(st.integers(0, tasks - 1))] = None
    return ConalProStage(number, tuple(points)), depth


def make_stage(
    stage: ConalProStage, depth: int, kind: str, replicas: int, seed: int = 0
) -> StageNetwork:
    torch.manual_seed(seed)
    names = [f"task-{i}" for i in range(len(stage.settled))]
    network = stage.network(names, make_chain(kind, depth), replicas)
    randomize(network)
    return network


shapes = {
    "kind": st.sampled_from(KINDS),
    "replicas": st.integers(1, 2),
    "seed": st.integers(0, 99),
    "one_input": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(stage_=stages(), **shapes)
def test_output_is_the_mixture_of_joining_and_leaving(
    stage_: tuple[ConalProStage, int], kind: str, replicas: int, seed: int, one_input: bool
) -> None:
    stage, depth = stage_
    network = make_stage(stage, depth, kind, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * len(stage.settled), 2)
    torch.testing.assert_close(network(x), torch.stack(stage_outputs(network, x)))


def test_half_precision_modules_take_single_precision_gates() -> None:
    """As a card's autocast has them, of convolutions."""
    network = make_stage(ConalProStage.first(3), 2, "conv", 1).float()
    x = make_input("conv", 3, 2).float()
    single = network(x)
    for modules in (network.joint, network.specific):
        modules.bfloat16()
    torch.testing.assert_close(network(x.bfloat16()).float(), single, rtol=0.1, atol=0.5)


@settings(max_examples=20, deadline=None)
@given(stage_=stages(), **shapes)
def test_gradients_equal_those_of_the_reference(
    stage_: tuple[ConalProStage, int], kind: str, replicas: int, seed: int, one_input: bool
) -> None:
    stage, depth = stage_
    network = make_stage(stage, depth, kind, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * len(stage.settled), 2)
    weights = torch.randn_like(network(x))
    parameters = list(network.parameters())
    found = torch.autograd.grad((network(x) * weights).sum(), parameters)
    outputs = torch.stack(stage_outputs(network, x))
    torch.testing.assert_close(found, torch.autograd.grad((outputs * weights).sum(), parameters))


@settings(max_examples=60, deadline=None)
@given(stages(), st.data())
def test_tasks_share_the_trunk_and_then_their_groups_branch(
    stage_: tuple[ConalProStage, int], data: st.DataObject
) -> None:
    stage, depth = stage_
    network = make_stage(stage, depth, "plain", 1)
    joining = data.draw(st.sets(st.sampled_from(network.choices)))
    leaving = set(network.choices) - joining
    choose(network, " ".join(joining))
    joint, tree = network.joint.tree, network.tree()
    joint_points = [network.point if p is None else p for p in stage.settled]
    points = [p - (name in leaving) for p, name in zip(joint_points, network.tasks)]
    for number in range(1, depth + 1):
        for i, one in enumerate(network.tasks):
            for j, other in enumerate(network.tasks[:i]):
                for found, at, leavers in ((joint, joint_points, set()), (tree, points, leaving)):
                    trunk = number < min(at[i], at[j])
                    branch = at[i] == at[j] <= number and not {one, other} & leavers
                    layer = found.layers[number - 1]
                    assert (layer[i] == layer[j]) == (trunk or branch)
    settled = tuple(None if name in leaving else p for p, name in zip(joint_points, network.tasks))
    goes_on = leaving and network.point > 2
    assert network.next_stage() == (ConalProStage(stage.number + 1, settled) if goes_on else None)


@settings(max_examples=60, deadline=None)
@given(stage_=stages(), **shapes, data=st.data())
def test_one_hot_gates_equal_the_derived_network(
    stage_: tuple[ConalProStage, int],
    kind: str,
    replicas: int,
    seed: int,
    one_input: bool,
    data: st.DataObject,
) -> None:
    stage, depth = stage_
    network = make_stage(stage, depth, kind, replicas, seed)
    choose(network, " ".join(data.draw(st.sets(st.sampled_from(network.choices)))))
    derived = network.derive()
    assert derived.tree == network.tree().replicate(replicas)
    x = make_input(kind, 1 if one_input else replicas * len(stage.settled), 2)
    expected = network(x)
    torch.testing.assert_close(derived(x), expected)
    torch.testing.assert_close(torch.stack(tree_outputs(derived, x)), expected)


def test_gumbel_gates_join_or_leave() -> None:
    network = make_stage(ConalProStage(2, (None, 4, None)), 3, "plain", 2)
    network.gumbel_temperature = 1.0
    x = make_input("plain", 6, 2)
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        weights = network.gate_weights()
        assert weights.unique().tolist() == [0, 1] and (weights.sum(dim=1) == 1).all()
        torch.manual_seed(seed)
        found = network(x)
        with torch.no_grad():
            network.gates.copy_(100 * weights)
        torch.testing.assert_close(found, torch.stack(stage_outputs(network, x)))
        drawn.add(tuple(weights[:, 0].tolist()))
        with torch.no_grad():
            network.gates.fill_(1.0)
    assert len(drawn) == 4


CAPTURED = [  # the first stage, groups settled at several points, a single task left
    (ConalProStage.first(3), 3),
    (ConalProStage(2, (4, None, None, 4)), 3),
    (ConalProStage(3, (4, None, 3, None, 3)), 3),
    (ConalProStage(3, (4, 4, None)), 3),
]


@pytest.mark.parametrize("one_input", [False, True], ids=["inputs", "one input"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("stage, depth", CAPTURED, ids=["first", "second", "last", "single"])
def test_captured_gradients_are_those_of_one_pass_per_task(
    stage: ConalProStage, depth: int, kind: str, replicas: int, one_input: bool
) -> None:
    tasks = len(stage.settled)
    network = make_stage(stage, depth, kind, replicas)
    assert network.shared_layers()
    x = make_input(kind, 1 if one_input else replicas * tasks, 3)
    check_task_gradients(network, x, tasks, lambda: stage_outputs(network, x))


def test_shared_layers_are_those_that_several_tasks_run() -> None:
    def shared(number: int, settled: tuple[int | None, ...], replicas: int = 1) -> list[int]:
        network = make_stage(ConalProStage(number, settled), 3, "plain", replicas)
        layers = list(network.joint.layers)
        assert all(any(own is layer for layer in layers) for own in network.shared_layers())
        return [layers.index(layer) for layer in network.shared_layers()]

    assert shared(1, (None, None)) == [0, 1, 2]
    assert shared(2, (4, None)) == [0, 1]  # the joint branch is for one task
    assert shared(2, (4, None, None)) == [0, 1, 2]
    assert shared(3, (4, None)) == shared(3, (4, None), 2) == [0]
    assert shared(1, (None,)) == shared(1, (None,), 2) == []


# From stage to stage


def weights_of(layer: Layer, module: int) -> list[Tensor]:
    return [t.clone() for t in module_slice(layer, module, dict(layer.named_parameters())).values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@settings(max_examples=40, deadline=None)
@given(stages(min_tasks=2), st.sampled_from(KINDS), st.integers(1, 2), st.data())
def test_a_stage_continues_the_stage_before(
    stage_: tuple[ConalProStage, int], kind: str, replicas: int, data: st.DataObject
) -> None:
    """Trunk and settled groups' branches are taken over bit for bit; all else is as it was."""
    stage, depth = stage_
    before = make_stage(stage, depth, kind, replicas)
    choose(before, " ".join(data.draw(st.sets(st.sampled_from(before.choices)))))
    following = before.next_stage()
    if following is None:
        return
    after = make_stage(following, depth, kind, replicas, seed=1)
    layers, fresh = after.joint.layers, {}
    for number, layer in enumerate(layers, start=1):
        for row, module in enumerate(layer.index):
            fresh[number, row] = weights_of(layer, module)
    untouched = [p.clone() for p in (after.gates, *after.specific.parameters())]
    learnt = [p.clone() for p in before.parameters()]
    after.inherit_from(before)

    tasks = len(stage.settled)
    for number, (layer, old) in enumerate(zip(layers, before.joint.layers), start=1):
        for row, module in enumerate(layer.index):
            found = weights_of(layer, module)
            if following.settled[row % tasks] is not None or number < after.point:
                assert same(found, weights_of(old, old.index[row]))
            else:
                assert same(found, fresh[number, row])
                assert not same(found, weights_of(old, old.index[row]))
    assert same([after.gates, *after.specific.parameters()], untouched)

    x = make_input(kind, replicas * tasks, 2)
    rows = [r for r in range(len(x)) if following.settled[r % tasks] is not None]
    torch.testing.assert_close(after(x)[rows], before.joint(x)[rows])
    with torch.no_grad():  # copies, not views
        for parameter in after.parameters():
            parameter.zero_()
    assert same(list(before.parameters()), learnt)


# Errors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("number", [1, 2], ids=["first", "last"])
def test_gates_that_are_not_finite_are_refused(number: int, value: float) -> None:
    network = ConalProStage(number, (None, None)).network("ab", linear_chain(IN, [4, 4]))
    with torch.no_grad():
        network.gates[1, 0] = value
    decisions: list[Callable[[], Any]] = [network.tree, network.next_stage, network.derive]
    for decide in decisions:
        with pytest.raises(ValueError, match=r"^gates: "):
            decide()


@pytest.mark.parametrize(
    "number, settled, field",
    [
        (0, (None,), "number"),
        (-1, (None, 3), "number"),
        (2, (3, 3), "settled"),
        (1, (), "settled"),
    ],
)
def test_a_stage_has_a_number_and_something_to_settle(
    number: int, settled: tuple[int | None, ...], field: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        ConalProStage(number, settled)


@pytest.mark.parametrize(
    "number, settled, field",
    [
        (1, (None, None), "settled"),
        (2, (None, 4, 4, 4), "settled"),
        (4, (None, None, None), "number"),  # it would be about point 1
        (1, (None, 4, None), "settled"),  # no stage came before
        (2, (None, 3, None), "settled"),  # the point that this stage is about
        (2, (None, 2, 4), "settled"),
        (3, (None, 5, 4), "settled"),  # P is 4
    ],
)
def test_a_stage_that_does_not_fit_is_refused(
    number: int, settled: tuple[int | None, ...], field: str
) -> None:
    stage = ConalProStage(number, settled)
    with pytest.raises(ValueError, match=rf"^{field}: "):
        stage.network("abc", linear_chain(IN, [4, 4, 4]))


@pytest.mark.parametrize("replicas, rows", [(1, 2), (1, 4), (2, 3), (2, 2)])
def test_wrong_rows_are_refused(replicas: int, rows: int) -> None:
    network = ConalProStage(2, (None, 3, 3)).network("abc", linear_chain(IN, [4, 4]), replicas)
    with pytest.raises(ValueError, match=rf"^x: got .{rows}, .* {3 * replicas} "):
        network(torch.zeros(rows, 5, IN))


# Memory


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a skip connection, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.skip(x)).relu()


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())


def blocks(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    stride = 1 if inputs == outputs else 2
    return lambda: nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))


RESNET_18 = [stem, blocks(64, 64), blocks(64, 128), blocks(128, 256), blocks(256, 512)]
STEM, LAYER_1, LAYER_2, LAYER_3, LAYER_4 = 1_856, 147_968, 525_568, 2_099_712, 8_393_728
SIZES = [STEM, LAYER_1, LAYER_2, LAYER_3, LAYER_4]
FACES = "abcdefghi"  # nine tasks, as the paper's CelebA-9


def resnet_chain() -> list[LayerFactory]:
    """Modules without memory for their weights, which are only counted."""

    def counted(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def module() -> nn.Module:
            with torch.device("meta"):
                return make()

        return module

    return module_chain([counted(make) for make in RESNET_18])


def celeba_stages(chain: list[LayerFactory]) -> list[StageNetwork]:
    """The stages in which a..d stay, e and f join at point 5, nobody at 4 and the others at 3."""
    stage, networks = ConalProStage.first(len(FACES)), []
    for joining in ("abcd", "ef", "", "ghi"):
        networks.append(stage.network(FACES, chain))
        choose(networks[-1], joining)
        following = networks[-1].next_stage()
        if following is not None:
            stage = following
    assert following is None
    return networks


def test_the_papers_celeba_tree_has_its_parameter_count() -> None:
    """Trunk, a branch from layer2 and one from layer4: 30.58M in the paper."""
    chain = resnet_chain()
    assert [parameter_count(make((0,))) for make in chain] == SIZES
    assert sum(SIZES) == 11_168_832
    tree = grouped(f"{FACES} | {FACES} | abcdef ghi | abcdef ghi | abcd ef ghi")
    last = celeba_stages(chain)[-1]
    assert last.tree() == tree
    assert parameter_count(TreeNetwork(tree, chain)) == 30_581_568


def test_a_stage_adds_one_joint_branch_and_short_specific_ones() -> None:
    """Trunk + settled branches + joint branch + what the open tasks have for themselves."""
    chain = resnet_chain()
    found = [sum(p.numel() for p in network.weights()) for network in celeba_stages(chain)]
    encoder, branch_3, branch_4, branch_5 = (sum(SIZES[skipped:]) for skipped in (0, 2, 3, 4))
    branch_2 = encoder - STEM
    assert found == [
        encoder + 9 * branch_5,
        encoder + branch_5 + 5 * branch_4,
        encoder + branch_5 + branch_4 + 3 * branch_3,
        encoder + branch_5 + branch_3 + 3 * branch_2,
    ]
    supernet = sum(p.numel() for p in Supernet(FACES, chain).weights())
    assert supernet == (1 + 9) * encoder
    assert max(found) < 0.8 * supernet


def test_no_stage_is_larger_than_the_supernet() -> None:
    """Where nobody joins before the last stage, that one holds whole encoders for all."""
    sizes = [IN * 4 + 4, *[4 * 4 + 4] * 4]
    chain = linear_chain(IN, [4] * 5)
    supernet = sum(p.numel() for p in Supernet(FACES, chain).weights())
    for number in range(1, 6):
        network = ConalProStage(number, (None,) * 9).network(FACES, chain)
        found = sum(p.numel() for p in network.weights())
        assert found == sum(sizes) + 9 * sum(sizes[5 - number :])
        assert found <= supernet
    assert found == supernet
    pair = ConalProStage(1, (None,) * 9).network(FACES, chain, replicas=2)
    assert sum(p.numel() for p in pair.weights()) == 2 * (sum(sizes) + 9 * sizes[-1])


# What the search finds


def pro_search(problem: Signs, steps: int) -> Tree:
    """All stages in sequence."""
    stage: ConalProStage | None = ConalProStage.first(4)
    network: StageNetwork | None = None
    while stage is not None:
        before, network = network, stage.network("abcd", problem.chain())
        if before is not None:
            network.inherit_from(before)
        problem.search(network, steps)
        stage = network.next_stage()
    assert network is not None
    return network.tree()


@pytest.mark.parametrize("seed", first_quick(range(2)))
@pytest.mark.slow
def test_equal_tasks_join_and_opposite_tasks_do_not(seed: int) -> None:
    """Of equal tasks one may stray, as it loses next to nothing."""
    equal = pro_search(Signs([1.0, 1.0, 1.0, 1.0], seed), steps=150)
    assert max(map(len, equal.groups(-1))) >= 3
    opposite = pro_search(Signs([1.0, -1.0, 1.0, -1.0], seed), steps=150)
    assert {*opposite.groups(-1)} <= {("a",), ("b",), ("c",), ("d",), ("a", "c"), ("b", "d")}
