"""Hypothesis strategies for the core's types."""

from __future__ import annotations

from hypothesis import strategies as st

from conal_rl.core.tree import Tree


@st.composite
def trees(draw: st.DrawFn, max_tasks: int = 6, max_depth: int = 5, min_tasks: int = 1) -> Tree:
    """Any valid tree: from each layer to the next, the groups of tasks split at random."""
    num_tasks = draw(st.integers(min_tasks, max_tasks))
    depth = draw(st.integers(1, max_depth))
    labels: list[tuple[int, ...]] = [()] * num_tasks
    layers = []
    for _ in range(depth):
        split = draw(st.lists(st.integers(0, 2), min_size=num_tasks, max_size=num_tasks))
        labels = [(*label, part) for label, part in zip(labels, split)]
        layers.append(labels)
    return Tree.from_labels([f"task-{i}" for i in range(num_tasks)], layers)
