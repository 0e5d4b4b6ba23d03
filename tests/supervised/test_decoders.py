"""Heads against torchvision's counts and names, and against plain functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core.tree_network import parameter_count
from conal_rl.supervised.decoders import (
    Heads,
    aspp,
    pooled_linear,
    token_head,
)
from tests.helpers.refusals import refused


def conv_norm(inputs: int, outputs: int, size: int) -> int:
    return inputs * outputs * size**2 + 2 * outputs


@pytest.mark.parametrize("outputs", [1, 13, 21])
def test_aspp_has_torchvisions_size(outputs: int) -> None:
    with torch.device("meta"):
        head = aspp(2048, outputs, (288, 384))
    branches = conv_norm(2048, 256, 1) + 3 * conv_norm(2048, 256, 3) + conv_norm(2048, 256, 1)
    joined = conv_norm(5 * 256, 256, 1) + conv_norm(256, 256, 3)
    count = branches + joined + 257 * outputs
    assert parameter_count(head) == count
    if outputs == 21:
        # torchvision's deeplabv3_resnet50: ResNet-50 without fc, this head, an FCN head on layer3.
        auxiliary = conv_norm(1024, 256, 3) + 257 * 21
        assert 25_557_032 - 2_049_000 + count + auxiliary == 42_004_074


def test_aspp_has_torchvisions_names() -> None:
    convs = [f"0.convs.{n}.{int(n == 4)}" for n in range(5)]  # the last branch starts with pooling
    norms = [f"0.convs.{n}.{1 + int(n == 4)}" for n in range(5)]
    expected = {f"{name}.weight" for name in [*convs, "0.project.0", "1"]}
    expected |= {f"{name}.{kind}" for name in [*norms, "0.project.1", "2"] for kind in NORM}
    with torch.device("meta"):
        assert set(aspp(8, 3, (4, 4)).state_dict()) == expected | {"4.weight", "4.bias"}


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_aspp_equals_plain_functions() -> None:
    torch.manual_seed(0)
    head = aspp(3, 2, (9, 13), rates=(1, 2), width=4).double().eval()
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1).mul_(1 if tensor.ndim == 1 else torch.randn_like(tensor))
    w = head.state_dict()

    def unit(x: Tensor, conv: str, bn: str, rate: int = 1) -> Tensor:
        pad = w[f"{conv}.weight"].shape[2] // 2 * rate
        y = F.conv2d(x, w[f"{conv}.weight"], padding=pad, dilation=rate)
        moments = w[f"{bn}.running_mean"], w[f"{bn}.running_var"]
        return F.relu(F.batch_norm(y, *moments, w[f"{bn}.weight"], w[f"{bn}.bias"]))

    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    branches = [
        unit(x, "0.convs.0.0", "0.convs.0.1"),
        unit(x, "0.convs.1.0", "0.convs.1.1", 1),
        unit(x, "0.convs.2.0", "0.convs.2.1", 2),
        unit(x.mean(dim=(2, 3), keepdim=True), "0.convs.3.1", "0.convs.3.2").expand(2, 4, 5, 7),
    ]
    y = unit(unit(torch.cat(branches, dim=1), "0.project.0", "0.project.1"), "1", "2")
    y = F.conv2d(y, w["4.weight"], w["4.bias"])
    # With aligned corners, 5 by 7 places become 9 by 13; every second place is an old one.
    prediction = head(x)
    assert prediction.shape == (2, 2, 9, 13)
    torch.testing.assert_close(prediction[..., ::2, ::2], y)
    torch.testing.assert_close(prediction[..., 1::2, ::2], (y[..., 1:, :] + y[..., :-1, :]) / 2)


def test_aspp_drops_out_in_training() -> None:
    head = aspp(3, 2, (4, 4), width=4)
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.5]
    x = torch.randn(2, 3, 4, 4)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_heads_map_rows_to_tasks() -> None:
    heads = Heads(
        {"digit.class": pooled_linear(4, 10), "items": aspp(4, 2, (6, 6), width=4), "ink": Mean()}
    ).eval()
    z = torch.randn(3, 5, 4, 3, 3)
    predictions = heads(z)
    assert list(predictions) == ["digit.class", "items", "ink"]
    linear = [p.detach() for p in heads.heads[0].parameters()]
    torch.testing.assert_close(
        predictions["digit.class"], z[0].mean(dim=(2, 3)) @ linear[0].T + linear[1]
    )
    torch.testing.assert_close(predictions["items"], heads.heads[1](z[1]))
    torch.testing.assert_close(predictions["ink"], z[2].mean(dim=(1, 2, 3)))
    with refused(ValueError, "z: got shape (2, 5, 4, 3, 3)", "3 rows"):
        heads(z[:2])


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3))


def test_token_heads_are_linear_with_dropout() -> None:
    z = torch.randn(2, 3, 7, 6)
    heads = Heads({"tags": token_head(6, 4), "again": token_head(6, 2)})
    assert parameter_count(heads) == 7 * 4 + 7 * 2
    assert not torch.equal(heads(z)["tags"], heads(z)["tags"])
    predictions = heads.eval()(z)
    weight, bias, weight1, bias1 = heads.parameters()
    torch.testing.assert_close(predictions["tags"], z[0] @ weight.T + bias)
    torch.testing.assert_close(predictions["again"], z[1] @ weight1.T + bias1)
