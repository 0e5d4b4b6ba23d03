"""ResNets against torchvision's names, shapes and counts, and against plain functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core import ConalProStage, Supernet, Tree, TreeNetwork
from conal_rl.core.ltb import LTBSearch
from conal_rl.core.tree_network import parameter_count
from conal_rl.errors import CheckpointError
from conal_rl.supervised.encoders import (
    Depth,
    Stage,
    Stem,
    StemName,
    features,
    load_torchvision,
    resnet_chain,
    small_chain,
)
from tests.helpers.refusals import refused

DEPTHS: tuple[Depth, ...] = (18, 34, 50)
BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}
PUBLISHED = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
}  # parameters, from torchvision's documentation
ENTRIES = {18: 122, 34: 218, 50: 320}  # in the state dict of torchvision's model


def shared(chain: Any, tasks: tuple[str, ...] = ("one",)) -> TreeNetwork:
    return TreeNetwork(Tree.shared(tasks, len(chain)), chain)


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": (width,) for key in keys} | {f"{name}.num_batches_tracked": ()}


def torchvision_shapes(depth: Depth, stem: int = 7) -> dict[str, tuple[int, ...]]:
    """The shapes in torchvision's state dict, by table 1 of the ResNet paper."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, stem, stem), **norm("bn1", 64)}
    before = 64
    for layer, (width, blocks) in enumerate(zip([64, 128, 256, 512], BLOCKS[depth]), start=1):
        kernels = [(width, 1), (width, 3), (4 * width, 1)] if depth == 50 else [(width, 3)] * 2
        for block in range(blocks):
            name, inputs = f"layer{layer}.{block}", before
            for number, (outputs, size) in enumerate(kernels, start=1):
                shapes[f"{name}.conv{number}.weight"] = (outputs, inputs, size, size)
                shapes |= norm(f"{name}.bn{number}", outputs)
                inputs = outputs
            if before != inputs:
                shapes[f"{name}.downsample.0.weight"] = (inputs, before, 1, 1)
                shapes |= norm(f"{name}.downsample.1", inputs)
            before = inputs
    return shapes | {"fc.weight": (1000, before), "fc.bias": (1000,)}


def make_weights(depth: Depth, stem: int = 7, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(depth)
    state = {}
    for name, shape in torchvision_shapes(depth, stem).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) == 4:
            spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            state[name] = torch.randn(shape, generator=generator, dtype=dtype) * spread
        else:
            state[name] = torch.rand(shape, generator=generator, dtype=dtype) + 0.1
    return state


def in_functions(state: dict[str, Tensor], x: Tensor, depth: Depth, stem: StemName) -> Tensor:
    """The ResNet in evaluation mode on `(batch, 3, height, width)`, from its named tensors."""

    def conv(x: Tensor, number: str, at: str, stride: int = 1) -> Tensor:
        weight = state[f"{at}conv{number}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return bn(x, f"{at}bn{number}")

    def bn(x: Tensor, at: str) -> Tensor:
        mean, var = state[f"{at}.running_mean"], state[f"{at}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{at}.weight"], state[f"{at}.bias"])

    x = F.relu(conv(x, "1", "", stride=2 if stem == "imagenet" else 1))
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            at, stride = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            if depth == 50:
                y = F.relu(conv(x, "1", at))
                y = F.relu(conv(y, "2", at, stride))
                y = conv(y, "3", at)
            else:
                y = conv(F.relu(conv(x, "1", at, stride)), "2", at)
            if f"{at}downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{at}downsample.0.weight"], stride=stride)
                x = bn(x, f"{at}downsample.1")
            x = F.relu(x + y)
    return x


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dilated", [False, True])
def test_parameters_are_torchvisions(depth: Depth, dilated: bool) -> None:
    expected = torchvision_shapes(depth)
    assert len(expected) == ENTRIES[depth]
    with torch.device("meta"):
        network = shared(resnet_chain(depth, dilated=dilated))
    modules = [m for m in network.modules() if isinstance(m, Stem | Stage)]
    assert [m.prefix for m in modules] == ["", "layer1.", "layer2.", "layer3.", "layer4."]
    shapes = {m.prefix + n: tuple(t.shape) for m in modules for n, t in m.state_dict().items()}
    fc = {name: expected.pop(name) for name in ("fc.weight", "fc.bias")}
    assert shapes == expected
    classifier = fc["fc.weight"][0] * fc["fc.weight"][1] + fc["fc.bias"][0]
    assert classifier == (2_049_000 if depth == 50 else 513_000)
    assert parameter_count(network) == PUBLISHED[depth] - classifier


def test_celeba_networks_have_the_papers_sizes() -> None:
    tasks = ("a", "b", "c")
    with torch.device("meta"):
        chain = resnet_chain(18, stem="3x3")
        whole = shared(chain)
        tree = Tree.from_branch_points([3, 5, 6], 5, tasks)  # specific from layer2, from layer4
        pro = TreeNetwork(tree, chain)
    assert parameter_count(whole) == 11_168_832
    assert parameter_count(pro) == 30_581_568


@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (18, "3x3"), (50, "imagenet")])
def test_resnets_equal_plain_functions(depth: Depth, stem: StemName) -> None:
    network = shared(resnet_chain(depth, stem)).double().eval()
    state = make_weights(depth, 7 if stem == "imagenet" else 3, torch.float64)
    load_torchvision(network, state)
    side = 40 if stem == "imagenet" else 16
    x = torch.randn(1, 2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = in_functions(state, x[0], depth, stem)
        torch.testing.assert_close(network(x)[0], expected)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.slow
def test_dilation_keeps_the_values_of_the_strided_network(depth: Depth) -> None:
    """Every fourth place of the dilated network equals a place of the strided one."""
    state = make_weights(depth, dtype=torch.float64)
    x = torch.randn(1, 1, 3, 72, 64, dtype=torch.float64)
    strided, dilated = (
        shared(resnet_chain(depth, dilated=dilated)).double().eval() for dilated in (False, True)
    )
    load_torchvision(strided, state)
    load_torchvision(dilated, state)
    with torch.no_grad():
        coarse, fine = strided(x), dilated(x)
    assert fine.shape[-2:] == (9, 8)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse)


@pytest.mark.parametrize(
    ("depth", "stem", "dilated", "expected"),
    [
        (18, "imagenet", False, (512, 32)),
        (34, "imagenet", True, (512, 8)),
        (50, "imagenet", True, (2048, 8)),
        (18, "3x3", False, (512, 8)),
    ],
)
def test_features_are_channels_and_stride(
    depth: Depth, stem: StemName, dilated: bool, expected: tuple[int, int]
) -> None:
    assert features(resnet_chain(depth, stem, dilated)) == expected


def test_a_small_chain_has_its_channels_and_strides() -> None:
    chain = small_chain([4, 6, 8, 8], [1, 2, 1, 2], in_channels=1)
    assert features(chain, in_channels=1) == (8, 4)
    supernet = Supernet(("a", "b"), chain)
    z = supernet(torch.randn(1, 3, 1, 8, 8))
    assert z.shape == (2, 3, 8, 2, 2)
    z.sum().backward()
    assert all(p.grad is not None for p in supernet.parameters())
    with refused(ValueError, "strides: got 1", "2"):
        small_chain([4, 4], [1])


def test_every_module_of_a_search_gets_the_weights(tmp_path: Path) -> None:
    tasks, chain, state = ("a", "b"), resnet_chain(18), make_weights(18)
    torch.save(state, tmp_path / "resnet18.pth")
    with torch.device("meta"):
        networks = nn.ModuleList(
            [
                Supernet(tasks, chain),
                ConalProStage.first(2).network(tasks, chain),
                LTBSearch(copies=2).network(tasks, chain),
                TreeNetwork(Tree.independent(tasks, 5), chain),
            ]
        )
    for network in networks:
        network.to_empty(device="cpu")
        load_torchvision(network, tmp_path / "resnet18.pth")
        modules = [m for m in network.modules() if isinstance(m, Stem | Stage)]
        for module in modules:
            for name, tensor in module.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    assert torch.equal(tensor, state[module.prefix + name])
        network.to("meta")  # only one network in memory
    assert len(modules) == 10


def test_classifier_and_counters_are_not_needed(tmp_path: Path) -> None:
    state = {
        name: tensor.half()
        for name, tensor in make_weights(18).items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "resnet18.safetensors")
    network = shared(resnet_chain(18))
    load_torchvision(network, str(tmp_path / "resnet18.safetensors"))
    stem: Any = next(m for m in network.modules() if isinstance(m, Stem))
    torch.testing.assert_close(stem.conv1.weight.data, state["conv1.weight"].float())


def test_unfit_weights_change_nothing() -> None:
    chain = resnet_chain(18)
    network = shared(chain)
    before = [p.clone() for p in network.parameters()]
    fitting = {n: torch.zeros(s) for n, s in torchvision_shapes(18).items()}
    cases = [
        (
            {n: t for n, t in fitting.items() if "layer3.1.bn2" not in n},
            "without layer3.1.bn2.weight",
        ),
        (
            fitting | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
            "different shape of conv1.weight ((64, 3, 3, 3)",
        ),
        (
            fitting | {"layer5.0.bn1.bias": torch.zeros(1)},
            "unknown layer5.0.bn1.bias",
        ),
        ({n: torch.zeros(s) for n, s in torchvision_shapes(34).items()}, "77 more"),
    ]
    for state, part in cases:
        with refused(CheckpointError, part):
            load_torchvision(network, state)
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before))
    with refused(ValueError, "network: got", "ResNet"):
        load_torchvision(nn.Linear(1, 1), fitting)


class Unsafe:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_files_without_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = shared(resnet_chain(18))
    whole = tmp_path / "whole.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not that either")
    torch.save({"state": {}, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({"conv1.weight": Unsafe()}, tmp_path / "unsafe.pth")
    for name, part in {
        "absent.pth": "no file",
        "": "no file",
        "cut.pth": "damaged",
        "text.pth": "damaged",
        "empty.pth": "damaged",
        "text.safetensors": "damaged",
        "wrapped.pth": "only named tensors",
        "unsafe.pth": "damaged",
    }.items():
        with refused(CheckpointError, f"{tmp_path / name}: got", part):
            load_torchvision(network, tmp_path / name)
    assert not (tmp_path / "ran").exists()
