"""CUDA graphs: device work of fixed shapes, recorded once and from then on launched in one go.

An update of small networks is hundreds of kernels that take less time to run than to launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

from conal_rl.errors import ConalError

WARM_UP = 3
"""Calls that run kernel by kernel before one is recorded: libraries set themselves up in them."""

Outputs = Tensor | dict[str, Tensor]


class CapturedGraph:
    """A function on a CUDA device whose kernels are recorded in one of its first calls.

    The shapes of all tensors are those of the first call, and the function may not wait for the
    device. Tensors that it changes stay where they are; what it draws comes from the device's own
    random state, as it would without recording. What Python does beside the kernels happens in
    calls that are not replayed alone.

    Args:
        function: of tensors, which are copied into memory of its own.
        stream: in which it is recorded.
        replayed: called after each replay, to do what Python would have done.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        stream: torch.cuda.Stream,
        replayed: Callable[[], object] = lambda: None,
    ):
        self._function, self._replayed = function, replayed
        self._stream = stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Outputs = {}
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The function's outputs, which the next call overwrites.

        Raises:
            ConalError: the function cannot be recorded.
        """
        if not self._calls:
            self._inputs = [own.to(self._stream.device, copy=True) for own in inputs]
        self._calls += 1
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        if self._graph is not None:
            self._graph.replay()
            self._replayed()
        elif self._calls <= WARM_UP:
            with _unvalidated(), _in_turn(self._stream):
                return self._function(*self._inputs)
        else:
            self._graph = self._record()
            self._graph.replay()
        return self._outputs

    @property
    def recorded(self) -> bool:
        """Whether the next call is a replay."""
        return self._graph is not None

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with _unvalidated(), torch.cuda.graph(graph, stream=self._stream):
                self._outputs = self._function(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConalError(
                f"no CUDA graph can be recorded here ({str(error).splitlines()[0]}); "
                "train with --agent.cuda-graphs false"
            ) from error
        return graph


class GraphCache:
    """The recorded functions of an agent, by kind: calls of a kind are the same kernels."""

    def __init__(self, device: torch.device):
        # One for all, as they use the same weights.
        self._stream = torch.cuda.Stream(device)
        self._recorded: dict[tuple[Hashable, ...], CapturedGraph] = {}

    def run(
        self,
        kind: tuple[Hashable, ...],
        function: Callable[..., Outputs],
        *inputs: Tensor,
        replayed: Callable[[], object] = lambda: None,
    ) -> Outputs:
        """Call `function`, or replay the graph of an earlier call of this kind."""
        if kind not in self._recorded:
            self._recorded[kind] = CapturedGraph(function, self._stream, replayed)
        return self._recorded[kind](*inputs)

    def kinds(self) -> dict[tuple[Hashable, ...], bool]:
        """What has been called, and whether it is replayed by now."""
        return {kind: own.recorded for kind, own in self._recorded.items()}

    def forget(self) -> None:
        """Record anew from here on: tensors have moved."""
        self._recorded.clear()


def prepare_optimizer(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Make Adam's steps such that they can be recorded on `device`, or not at all (None).

    Their sizes are on the device, too, so that they may change.
    """
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["capturable"] = device is not None
        group["lr"] = rate if device is None else torch.tensor(rate, device=device)
    if device is not None:
        for remembered in optimizer.state.values():
            remembered["step"] = remembered["step"].to(device, torch.float32)


def set_step_size(optimizer: torch.optim.Optimizer, size: float) -> None:
    """Of an optimiser that was prepared for a device."""
    for group in optimizer.param_groups:
        group["lr"].fill_(size)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """torch's distributions do not check their arguments, for which they wait for the device."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def _in_turn(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work in `stream`, after what the current stream has begun and before what it begins next."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
