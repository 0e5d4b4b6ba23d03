"""Networks whose encoder has the shape of a structure: of a tree, or of the search for one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from conal_rl.core import SearchNetwork, Structure, Tree, TreeNetwork
from conal_rl.core.layers import LayerFactory

Encoder = TreeNetwork | SearchNetwork


def make_encoder(
    structure: Structure, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
) -> Encoder:
    """Return the encoder of a structure.

    Args:
        structure: the tree, or the search.
        tasks: the names of the tasks.
        chain: one layer factory per module.
        replicas: number of members of an ensemble; each has separate weights.

    Raises:
        ValueError: the structure does not fit the tasks or the chain.
    """
    if isinstance(structure, Tree):
        return TreeNetwork(structure.replicate(replicas), chain)
    return structure.network(tasks, chain, replicas)


class EncoderNetwork(nn.Module):
    """An encoder and the modules that read its output; a subclass makes both.

    Attributes:
        encoder: the encoder of `make_encoder`.
    """

    encoder: Encoder

    def __init__(self) -> None:
        super().__init__()
        self._weights: tuple[nn.Parameter, ...] = ()

    @property
    def gates(self) -> nn.Parameter | None:
        """The search's gates `(choice, option)`; None for a tree and for Recon."""
        return self.encoder.gates if isinstance(self.encoder, SearchNetwork) else None

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Every parameter except the gates."""
        if not self._weights:  # finding them takes longer than averaging them
            self._weights = tuple(p for p in self.parameters() if p is not self.gates)
        return self._weights
