"""Conflict noticing as an aggregator of TorchJD, next to one of TorchJD's own.

The aggregator combines the gradients of several losses of any torch model. Run it with
`python examples/torchjd_aggregator.py`; it takes a few seconds.
"""

import torch
from torch import nn
from torchjd.aggregation import Aggregator, Mean
from torchjd.autojac import backward, jac_to_grad

from conal_rl.core.weighting import ConflictNoticingAggregator

AGGREGATORS: dict[str, Aggregator] = {
    "mean of the gradients": Mean(),
    "conflict noticing": ConflictNoticingAggregator(rule="any_pair"),
}

for name, aggregator in AGGREGATORS.items():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = 0
    for _ in range(100):
        x = torch.randn(64, 4)
        # Both losses change the same weights. They agree until the best compromise is reached.
        goals = [x[:, :2], x[:, :2] + 0.5 * x[:, 2:]]
        losses = [(model(x) - goal).square().mean() for goal in goals]
        backward(losses, parallel_chunk_size=1)  # one gradient for each loss
        jac_to_grad(model.parameters(), aggregator)  # becomes the model's gradient
        held += all(not p.grad.any() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    text = ", ".join(f"{loss.item():.3f}" for loss in losses)
    print(f"{name}: losses {text}; the model was held still in {held} of 100 steps")
