"""Three tasks on two trees: which tasks conflict on a shared module, and which should share it.

The tasks `up` and `also up` are the same function, `down` is its opposite, so the right tree has
two groups. Run it with `python examples/tree_and_conflicts.py`; it takes a few seconds.
"""

import torch
from torch import nn

from conal_rl.core import ConflictNoticing, Tree, TreeNetwork, module_chain

TASKS = ("up", "also up", "down")
SIGNS = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1)
CHAIN = [lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh()), lambda: nn.Linear(8, 1)]
TREES = {
    "one group": Tree.from_groups(TASKS, [[TASKS]] * 2),
    "two groups": Tree.from_groups(TASKS, [[TASKS[:2], TASKS[2:]]] * 2),
}

for name, tree in TREES.items():
    torch.manual_seed(0)
    network = TreeNetwork(tree, module_chain(CHAIN))
    noticing = ConflictNoticing(network.shared_layers(), rule="none", study_every=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(200):
        x = torch.rand(3, 32, 1) * 2 - 1  # (task, batch, feature)
        with noticing.capture():
            losses = (network(x) - SIGNS * x).square().mean(dim=(1, 2))  # (task,)
        optimizer.zero_grad()
        noticing.backward(losses)  # instead of losses.sum().backward()
        optimizer.step()
    statistics = noticing.statistics()
    assert statistics is not None
    print(f"{name}: squared errors {[round(loss, 3) for loss in losses.tolist()]}")
    for one, other in ((0, 1), (0, 2)):
        if statistics.counted[0, one, other]:
            share = statistics.negative[0, one, other]
            print(f"  {TASKS[one]} and {TASKS[other]} conflict in {share:.0%} of the steps")
