"""Image encoders as chains of modules: ResNet-18, -34 and -50, and a small encoder.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), in torchvision's version: the
3x3 convolution of a bottleneck has the stride. Parameters have torchvision's names, so that
torchvision's weight files load (`load_torchvision`).
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
from conal_rl.files import user_path

Depth = Literal[18, 34, 50]
StemName = Literal["imagenet", "3x3"]


def resnet_chain(
    depth: Depth, stem: StemName = "imagenet", dilated: bool = False
) -> list[LayerFactory]:
    """Return a ResNet without pooling and classifier: stem, layer1, ..., layer4 (P = 6).

    The chain maps `(row, batch, 3, height, width)` to
    `(row, batch, channels, height / s, width / s)`. `features` gives the channels and s.

    Args:
        depth: the number of layers.
        stem: "imagenet" is a 7x7 convolution of stride 2 and max-pooling. "3x3" is one 3x3
            convolution of stride 1 (CelebA).
        dilated: layer3 and layer4 have dilated 3x3 convolutions instead of a stride, as in
            torchvision's `replace_stride_with_dilation=[False, True, True]`. torchvision refuses
            this for basic blocks. As in LibMTL, the first convolution of a layer then has the
            dilation of the layer before, and the others have the layer's dilation.
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
    """Return 3x3 convolutions with batch norm and ReLU, one per module, for small images.

    The chain maps `(row, batch, in_channels, height, width)` to
    `(row, batch, channels[-1], height / s, width / s)`. s is the product of the strides.

    Raises:
        ValueError: `channels` and `strides` differ in length.
    """
    if len(channels) != len(strides):
        raise ValueError(f"strides: got {len(strides)} values, expected {len(channels)}")
    sizes = zip([in_channels, *channels], channels, strides)
    return module_chain([partial(_small_module, i, o, stride) for i, o, stride in sizes])


class Features(NamedTuple):
    """The shape of an image encoder's output."""

    channels: int
    stride: int  # pixels of the image per output position, the same in both directions


def features(chain: Sequence[LayerFactory], in_channels: int = 3) -> Features:
    """Return channels and stride of the chain's output, from shapes only."""
    side = 256
    with torch.device("meta"):
        x = torch.empty(1, 1, in_channels, side, side)
        for make in chain:
            x = make((0,))(x)
    return Features(x.shape[2], side // x.shape[3])


class Stem(nn.Module):
    """The first convolution: `(batch, 3, height, width)` to 64 channels."""

    prefix: ClassVar[str] = ""  # of the parameters' names in a weight file

    def __init__(self, kind: StemName = "imagenet"):
        super().__init__()
        self.pool = kind == "imagenet"
        self.conv1 = _conv(3, 64, 7, stride=2) if self.pool else _conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        """Map to a quarter of the resolution (imagenet) or to the full resolution (3x3)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pool else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (ResNet-18, -34).

    Args:
        inputs: input channels.
        width: output channels.
        stride: the stride of the first convolution.
        dilations: the dilations of the first and of the second convolution.
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
        inputs: input channels.
        width: inner channels. There are four times as many output channels.
        stride: the stride of the 3x3 convolution.
        dilations: the 3x3 convolution has the first dilation, because it has the stride.
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
    """The blocks of layer `number`; the first block has the stride.

    Args:
        number: the number of the layer, 1 to 4.
        block: the kind of block.
        blocks: the number of blocks.
        inputs, width, stride: those of the blocks.
        dilations: the dilations of the layer before and of this layer.
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
        inner_dilations = (dilations[1], dilations[1])
        outputs = width * block.expansion
        super().__init__(
            block(inputs, width, stride, dilations),
            *(block(outputs, width, 1, inner_dilations) for _ in range(blocks - 1)),
        )
        self.prefix = f"layer{number}."  # of the parameters' names in a weight file


def load_torchvision(network: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Fill each ResNet module in `network` with the weights of a torchvision ResNet.

    All modules of the same layer get the same weights: the modules of a `TreeNetwork`, and the
    shared, specific and copied modules of a search.

    Args:
        network: a network with modules of a `resnet_chain`.
        weights: named tensors or a file: safetensors, or a file that `torch.load` reads with
            `weights_only`. The classifier (`fc`) and batch norm's counters are ignored.

    Raises:
        CheckpointError: the file is missing or has a different kind, or names or shapes do not
            fit. Then the network is unchanged.
        ValueError: `network` has no ResNet module.
    """
    modules = [m for m in network.modules() if isinstance(m, Stem | Stage)]
    if not modules:
        raise ValueError("network: got no ResNet module, expected at least one")
    source, tensors = "weights", weights
    if not isinstance(tensors, Mapping):
        source, tensors = str(weights), read_weights(user_path(tensors))
    counter = ".num_batches_tracked"
    named = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("fc.") and not name.endswith(counter)
    }
    parameters = [
        (m.prefix + name, tensor)
        for m in modules
        for name, tensor in m.state_dict().items()
        if not name.endswith(counter)
    ]
    check_fit(parameters, named, source)
    fill(parameters, named)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the named tensors in a file, on the CPU; code in the file is never run.

    Raises:
        CheckpointError: the file is missing, damaged, or not a file of weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: got no file, expected weights. Check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: got {error.strerror!r}, expected a readable file. Check its permissions"
        ) from error
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
    ) as error:  # a damaged pickle raises errors of many types
        raise _not_weights(path) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _not_weights(path)
    return state


def _not_weights(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: got a damaged or different file, expected only named tensors. Download it again"
    )


def check_fit(
    parameters: Iterable[tuple[str, Tensor]], named: Mapping[str, Tensor], source: str
) -> None:
    """Raise CheckpointError unless `named` has exactly the names and shapes of `parameters`."""
    wanted = {name: tuple(tensor.shape) for name, tensor in parameters}
    shapes = [
        f"{name} ({tuple(named[name].shape)} instead of {shape})"
        for name, shape in wanted.items()
        if name in named and tuple(named[name].shape) != shape
    ]
    faults = {
        "without": [name for name in wanted if name not in named],
        "with a different shape of": shapes,
        "with unknown": [name for name in named if name not in wanted],
    }
    listed = "; ".join(f"{fault} {_some(names)}" for fault, names in faults.items() if names)
    if listed:
        raise CheckpointError(
            f"{source}: got weights {listed}, expected those of the network. "
            "Use the weights of the same encoder"
        )


@torch.no_grad()
def fill(parameters: Iterable[tuple[str, Tensor]], named: Mapping[str, Tensor]) -> None:
    """Copy each named tensor into the parameter of the same name."""
    for name, tensor in parameters:
        tensor.copy_(named[name])


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a padded convolution without bias, initialised as in torchvision."""
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
