"""Heads: one module per task that maps the task's encoding to its prediction.

The encoding of an image is `(batch, channels, height, width)`, of a text `(batch, token, feature)`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """One head per task, on the output of the encoder of all tasks.

    Args:
        heads: the head of each task, in the order of the encoder's rows.
    """

    def __init__(self, heads: Mapping[str, nn.Module]):
        super().__init__()
        self.tasks = tuple(heads)
        # An nn.ModuleDict would refuse names with dots and the names of its methods.
        self.heads = nn.ModuleList(heads.values())

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Map `(task, batch, ...)` to each task's `(batch, ...)`.

        Raises:
            ValueError: the numbers of rows and of tasks differ.
        """
        if len(z) != len(self.tasks):
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, expected {len(self.tasks)} rows, one per task"
            )
        return {task: head(row) for task, head, row in zip(self.tasks, self.heads, z, strict=True)}


def aspp(
    in_channels: int,
    outputs: int,
    size: tuple[int, int],
    rates: Sequence[int] = (12, 24, 36),
    width: int = 256,
    dropout: float = 0.5,
) -> nn.Module:
    """Return DeepLab-v3's head: `(batch, in_channels, h, w)` to `(batch, outputs, *size)`.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017). Modules and
    parameter names are those of torchvision's `DeepLabHead`. As in LibMTL, bilinear upsampling with
    aligned corners follows. Training needs a batch of two or more: in the pooled branch, batch norm
    has only one value per channel and image.

    Args:
        in_channels: channels of the encoding.
        outputs: classes, or channels to predict.
        size: height and width of the prediction.
        rates: dilations of the 3x3 branches.
        width: channels of each branch and of the layers behind the branches.
        dropout: rate of the dropout behind the joined branches.
    """
    return nn.Sequential(
        _Pyramid(in_channels, rates, width, dropout),
        *_conv(width, width, 3),
        nn.Conv2d(width, outputs, 1),
        nn.Upsample(size, mode="bilinear", align_corners=True),
    )


def pooled_linear(channels: int, outputs: int) -> nn.Module:
    """Return a linear layer on an image's mean: `(batch, channels, h, w)` to `(batch, outputs)`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def token_head(in_features: int, outputs: int, dropout: float = 0.1) -> nn.Module:
    """Return dropout and a linear layer: `(batch, token, in)` to `(batch, token, outputs)`.

    It also takes pooled text `(batch, in)`.
    """
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(in_features, outputs))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: parallel branches 1x1, 3x3 at each rate, and the mean."""

    def __init__(self, in_channels: int, rates: Sequence[int], width: int, dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_conv(in_channels, width, 1)),
                *(nn.Sequential(*_conv(in_channels, width, 3, rate)) for rate in rates),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv(in_channels, width, 1)),
            ]
        )
        self.project = nn.Sequential(*_conv(width * len(self.convs), width, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, width, h, w)`."""
        *branches, mean = [conv(x) for conv in self.convs]
        return self.project(torch.cat([*branches, mean.expand_as(branches[0])], dim=1))


def _conv(inputs: int, outputs: int, size: int, rate: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2 * rate, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
