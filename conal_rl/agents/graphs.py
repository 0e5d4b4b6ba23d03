"""CUDA graphs: device work of fixed shapes that is captured once and then launched as one.

An update of small networks has hundreds of kernels whose launch takes longer than their run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

from conal_rl.errors import ConalError

WARM_UP = 3
"""Number of calls before the capture, in which libraries initialise."""

Outputs = Tensor | dict[str, Tensor]


class CapturedGraph:
    """A function on a CUDA device whose kernels are captured in one of its first calls.

    All tensors keep the shapes of the first call, and the function must not wait for the device. It
    may change tensors in place, and draws the same random numbers as without a capture. A replay
    runs only the kernels, not the function's Python code.

    Args:
        function: takes tensors; the graph holds a copy of each.
        stream: the stream of the capture.
        replayed: is called after each replay, and does the work of the skipped Python code.
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
        """Return the function's outputs; the next call overwrites them.

        Raises:
            ConalError: the function cannot be captured.
        """
        if not self._calls:
            self._inputs = [given.to(self._stream.device, copy=True) for given in inputs]
        self._calls += 1
        for copied, given in zip(self._inputs, inputs, strict=True):
            copied.copy_(given)
        if self._graph is not None:
            self._graph.replay()
            self._replayed()
        elif self._calls <= WARM_UP:
            with _unvalidated(), _in_turn(self._stream):
                return self._function(*self._inputs)
        else:
            self._graph = self._capture()
            self._graph.replay()
        return self._outputs

    @property
    def captured(self) -> bool:
        """Whether the next call is a replay."""
        return self._graph is not None

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with _unvalidated(), torch.cuda.graph(graph, stream=self._stream):
                self._outputs = self._function(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConalError(
                f"agent.cuda_graphs: got True, expected False here, because capturing "
                f"failed: {str(error).splitlines()[0]}. Give --agent.no-cuda-graphs"
            ) from error
        return graph


class GraphCache:
    """The captured functions of an agent, by kind; calls of one kind run the same kernels."""

    def __init__(self, device: torch.device):
        # One for all, because they use the same weights.
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[tuple[Hashable, ...], CapturedGraph] = {}

    def __reduce__(self) -> tuple[type[GraphCache], tuple[torch.device]]:
        return GraphCache, (self._stream.device,)  # graphs are of tensors that a copy does not have

    def run(
        self,
        kind: tuple[Hashable, ...],
        function: Callable[..., Outputs],
        *inputs: Tensor,
        replayed: Callable[[], object] = lambda: None,
    ) -> Outputs:
        """Call `function`, or replay the graph of an earlier call of this kind."""
        if kind not in self._graphs:
            self._graphs[kind] = CapturedGraph(function, self._stream, replayed)
        return self._graphs[kind](*inputs)

    def kinds(self) -> dict[tuple[Hashable, ...], bool]:
        """Return the kinds that were called, and whether their next call is a replay."""
        return {kind: graph.captured for kind, graph in self._graphs.items()}

    def forget(self) -> None:
        """Capture from scratch, because tensors have moved."""
        self._graphs.clear()


def prepare_optimizer(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Let Adam's steps be captured on `device`; None: they are not captured.

    The learning rate is on the device too, so that it may change.
    """
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["capturable"] = device is not None
        group["lr"] = (
            rate if device is None else torch.tensor(rate, device=device, dtype=torch.float32)
        )
    if device is not None:
        for remembered in optimizer.state.values():
            remembered["step"] = remembered["step"].to(device, torch.float32)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Switch off the checks of torch's distributions, which wait for the device."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def _in_turn(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work in `stream`, after the earlier and before the later work of the current stream."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
