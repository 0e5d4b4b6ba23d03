"""Image encoders as chains of modules: ResNet-18, -34 and -50, and a small one.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), as torchvision has it: the
stride of a bottleneck is in its 3x3 convolution. Parameters have torchvision's names, so that its
weight files load (`load_torchvision`).
"""

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core import module_chain
from conal_rl.core.layers import LayerFactory
from conal_rl.errors import CheckpointError

Depth = Literal[18, 34, 50]
StemName = Literal["imagenet", "3x3"]


def resnet_chain(
    depth: Depth, stem: StemName = "imagenet", dilated: bool = False
) -> list[LayerFactory]:
    """A ResNet without pooling and classifier: stem, layer1, ..., layer4 (P = 6).

    Maps `(row, batch, 3, height, width)` to `(row, batch, channels, height / s, width / s)`;
    `features` tells channels and s.

    Args:
        depth: which ResNet.
        stem: "imagenet" is 7x7 of stride 2 and max-pooling, "3x3" one 3x3 of stride 1 (CelebA).
        dilated: layer3 and layer4 keep the resolution of layer2 and dilate their 3x3 convolutions
            instead, torchvision's `replace_stride_with_dilation=[False, True, True]`. Its basic
            blocks refuse this; here, as in LibMTL, their first convolution has the dilation of
            the layer before and the others have their own.
    """
    block: type[BasicBlock | Bottleneck] = Bottleneck if depth == 50 else BasicBlock
    factories: list[Callable[[], nn.Module]] = [partial(Stem, stem)]
    inputs, dilation = 64, 1
    for number, blocks in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3), start=1):
        before, stride = dilation, 1 if number == 1 else 2
        if dilated and number > 2:
            dilation, stride = dilation * stride, 1
        width = 64 * 2 ** (number - 1)
        factories.append(
            partial(Stage, number, block, blocks, inputs, width, stride, (before, dilation))
        )
        inputs = width * block.expansion
    return module_chain(factories)


def small_chain(
    channels: Sequence[int], strides: Sequence[int], in_channels: int = 3
) -> list[LayerFactory]:
    """3x3 convolutions with batch norm and ReLU, one a module: for digits and small tiles.

    Maps `(row, batch, in_channels, height, width)` to
    `(row, batch, channels[-1], height / s, width / s)`, s the product of the strides.

    Raises:
        ValueError: not one stride for each number of channels.
    """
    if len(channels) != len(strides):
        raise ValueError(f"{len(strides)} strides for {len(channels)} modules")
    sizes = zip([in_channels, *channels], channels, strides)
    return module_chain([partial(_small_module, i, o, stride) for i, o, stride in sizes])


class Features(NamedTuple):
    """What an image encoder puts out."""

    channels: int
    stride: int  # pixels of the image from one place to the next, the same in both directions


def features(chain: Sequence[LayerFactory], in_channels: int = 3) -> Features:
    """What the modules of `chain` give for an image, found without computing anything."""
    side = 256
    with torch.device("meta"):
        x = torch.empty(1, 1, in_channels, side, side)
        for make in chain:
            x = make((0,))(x)
    return Features(x.shape[2], side // x.shape[3])


class Stem(nn.Module):
    """The first convolution: `(batch, 3, height, width)` to 64 channels."""

    prefix: ClassVar[str] = ""  # of its names in a weight file

    def __init__(self, kind: StemName = "imagenet"):
        super().__init__()
        self.pool = kind == "imagenet"
        self.conv1 = _conv(3, 64, 7, stride=2) if self.pool else _conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        """At a quarter of the resolution (imagenet) or at all of it (3x3)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pool else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (ResNet-18, -34).

    Args:
        inputs: channels.
        width: channels that come out.
        stride: of the first convolution.
        dilations: of the first and the second.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]):
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, inputs, height, width)` to `width` channels."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut (ResNet-50).

    Args:
        inputs: channels.
        width: channels inside; four times as many come out.
        stride: of the 3x3 convolution.
        dilations: of the 3x3 convolution the first, as it is the one with the stride.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]):
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, inputs, height, width)` to `4 width` channels."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Stage(nn.Sequential):
    """The blocks of layer `number` (1 to 4); the first of them has the stride.

    Args:
        number: which layer.
        block: of what kind.
        blocks: how many.
        inputs, width, stride: as the blocks.
        dilations: of the layer before, and of this one.
    """

    def __init__(
        self,
        number: int,
        block: type[BasicBlock | Bottleneck],
        blocks: int,
        inputs: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
    ):
        own = (dilations[1], dilations[1])
        outputs = width * block.expansion
        super().__init__(
            block(inputs, width, stride, dilations),
            *(block(outputs, width, 1, own) for _ in range(blocks - 1)),
        )
        self.prefix = f"layer{number}."  # of its names in a weight file


def load_torchvision(network: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Fill every ResNet module in `network` with the weights of a torchvision ResNet.

    All modules of one place in the chain get the same: those of a `TreeNetwork`, and of a search
    space the trunk's, the tasks' own and the copies.

    Args:
        network: whatever holds modules of a `resnet_chain`.
        weights: a file (safetensors, or what `torch.load` reads with `weights_only`), or named
            tensors. The classifier (`fc`) and the counters of batch norm are not looked at.

    Raises:
        CheckpointError: a missing file or one of another kind, or names or shapes that do not
            fit; then nothing has been changed.
        ValueError: there is no ResNet module in `network`.
    """
    modules = [m for m in network.modules() if isinstance(m, Stem | Stage)]
    if not modules:
        raise ValueError("there is no ResNet module to load weights into")
    source, found = "the weights", weights
    if not isinstance(found, Mapping):
        source, found = str(weights), read_weights(Path(found))
    counter = ".num_batches_tracked"
    named = {
        name: tensor
        for name, tensor in found.items()
        if not name.startswith("fc.") and not name.endswith(counter)
    }
    places = [
        (m.prefix + name, own)
        for m in modules
        for name, own in m.state_dict().items()
        if not name.endswith(counter)
    ]
    check_fit(places, named, source)
    fill(places, named)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in a file, on the CPU; runs no code from it.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        SafetensorError,
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # a damaged pickle may raise nearly anything
        raise CheckpointError(f"{path}: damaged, or not a file of weights") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: does not hold named tensors and nothing else")
    return state


def check_fit(
    places: Iterable[tuple[str, Tensor]], named: Mapping[str, Tensor], source: str
) -> None:
    """Raise CheckpointError unless `named` has just the names of `places`, in their shapes."""
    wanted = {name: tuple(own.shape) for name, own in places}
    shapes = [
        f"{name} ({tuple(named[name].shape)}, here {shape})"
        for name, shape in wanted.items()
        if name in named and tuple(named[name].shape) != shape
    ]
    faults = {
        "lacks": [name for name in wanted if name not in named],
        "has another shape of": shapes,
        "has no place here for": [name for name in named if name not in wanted],
    }
    said = "; ".join(f"{fault} {_some(names)}" for fault, names in faults.items() if names)
    if said:
        raise CheckpointError(f"{source}: does not fit the network: {said}")


@torch.no_grad()
def fill(places: Iterable[tuple[str, Tensor]], named: Mapping[str, Tensor]) -> None:
    """Copy the named tensors into the tensors of these names."""
    for name, own in places:
        own.copy_(named[name])


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Without bias, padded to keep the resolution; torchvision's initialisation."""
    conv = nn.Conv2d(
        inputs, outputs, size, stride, size // 2 * dilation, dilation=dilation, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _small_module(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
