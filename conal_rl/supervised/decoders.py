"""Heads: what turns a task's encoding into its prediction, one module per task.

`(batch, channels, height, width)` is an image's encoding, `(batch, token, feature)` a text's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """A head for each task, of any kind, on the output of an encoder of all tasks.

    Args:
        heads: for each task, in the order of the encoder's rows.
    """

    def __init__(self, heads: Mapping[str, nn.Module]):
        super().__init__()
        self.tasks = tuple(heads)
        # Not by name: an nn.ModuleDict refuses dots and the names of its own methods.
        self.heads = nn.ModuleList(heads.values())

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Map `(task, batch, ...)` to each task's `(batch, ...)`.

        Raises:
            ValueError: another number of rows than of tasks.
        """
        if len(z) != len(self.tasks):
            raise ValueError(
                f"expected {len(self.tasks)} rows (one per task), got {tuple(z.shape)}"
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
    """DeepLab-v3's head: `(batch, in_channels, h, w)` to `(batch, outputs, *size)`.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), with the
    modules and parameter names of torchvision's `DeepLabHead`, and bilinear upsampling with
    aligned corners, as LibMTL has it. Training needs a batch of at least two: batch norm sees one
    value per channel and image in the pooled branch.

    Args:
        in_channels: channels of the encoding.
        outputs: classes, or channels to predict.
        size: height and width of the prediction.
        rates: dilations of the 3x3 branches.
        width: channels of each branch and of what follows.
        dropout: after the branches are joined.
    """
    return nn.Sequential(
        _Pyramid(in_channels, rates, width, dropout),
        *_conv(width, width, 3),
        nn.Conv2d(width, outputs, 1),
        nn.Upsample(size, mode="bilinear", align_corners=True),
    )


def pooled_linear(channels: int, outputs: int) -> nn.Module:
    """A linear layer on the mean over an image: `(batch, channels, h, w)` to `(batch, outputs)`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def token_head(in_features: int, outputs: int, dropout: float = 0.1) -> nn.Module:
    """Dropout and a linear layer on every token: `(batch, token, in)` to `(batch, token, outputs)`.

    Also for pooled text, `(batch, in)`.
    """
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(in_features, outputs))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, 3x3 at each rate, and the image's mean, side by side."""

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
