"""The abilities of this machine: its devices, cores, memory, half precision and allocator."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from conal_rl.config.checks import require_device
from conal_rl.config.values import quoted
from conal_rl.errors import ConfigError
from conal_rl.literals import Precision

if TYPE_CHECKING:
    import torch

EMULATED = "got bfloat16, which is slow on this machine because it lacks the instructions"
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_ISAS_WITHOUT_BFLOAT16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that leave out both kinds of instructions."""


def resolve_device(field: str, name: str) -> torch.device:
    """Return the device of this name; `auto` is a GPU if the machine has one.

    Raises:
        ConfigError: the name is unknown, or this machine lacks the device. The error names `field`.
    """
    require_device(field, name)
    import torch  # imported here so that --help and wrong options answer at once
    from stable_baselines3.common.utils import get_device

    if name == "auto":
        return get_device(name)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{field}: got {name}, expected a device of this machine ({reason}). Give auto or cpu"
        ) from error
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for matrix multiplications in bfloat16.

    On an x86 processor these are AVX-512 BF16 and AMX. A CPU without them emulates bfloat16, up to
    seventy times slower than single precision. CPUs of other kinds count as CPUs without them. The
    answer depends on the hardware only, and on `ONEDNN_MAX_CPU_ISA`, which limits what torch may
    use.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_BFLOAT16:
        return False
    capabilities = _capabilities()
    return any(capabilities.get(instructions) is True for instructions in _BFLOAT16_INSTRUCTIONS)


def choose_precision(mixed: bool, device: torch.device, on_cuda: Precision) -> Precision:
    """Return the precision of matrix multiplications: half precision if asked for and fast.

    Args:
        mixed: whether half precision is asked for.
        device: the device of the networks.
        on_cuda: the half precision of CUDA devices. All other devices use bfloat16.
    """
    if mixed and device.type == "cuda" and on_cuda == "float16":
        return "float16"
    return "bfloat16" if mixed and has_bfloat16(device) else "single"


def _capabilities() -> Mapping[str, object]:
    """Return the processor's features by torch's names."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 and later
        return torch.cpu.get_capabilities()
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1.

    These are the cores that it is bound to, or fewer if a container has a quota.

    Args:
        root: the folder that `proc` and `sys` are mounted in.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    return max(1, int(min(cores, _cpu_quota(root))))


def _cpu_quota(root: Path) -> float:
    """Return the cores that Linux's control groups (version 2) leave to this process."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    group = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    mounted, quota = root / "sys/fs/cgroup", math.inf
    for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
        try:
            time, period = (mounted / folder / "cpu.max").read_text(encoding="utf-8").split()
            quota = min(quota, float(time) / float(period))  # without a quota, time is "max"
        except (OSError, ValueError):
            continue
    return quota


def require_memory(field: str, value: Any, needed: int, device: torch.device | str = "cpu") -> None:
    """Raise ConfigError if `needed` bytes are more than all memory of a device.

    Args:
        field: the field or argument whose value needs them, for the error.
        value: its value.
        needed: an estimate that is never too high, so that nothing is refused that would fit.
        device: the device that needs them. A CPU's memory is the machine's, with its swap.
    """
    memory = total_memory(device)
    if needed > memory:
        raise ConfigError(
            f"{field}: got {quoted(value)}, which takes {_gigabytes(needed)} of memory or more, "
            f"expected at most the {_gigabytes(memory)} of this machine ({device}). Lower it"
        )


def total_memory(device: torch.device | str, root: Path = Path("/")) -> float:
    """Return the bytes of memory of a device; infinity if the system does not say.

    Args:
        device: a CPU's memory is the machine's, with its swap.
        root: the folder that `proc` is mounted in.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        return 1024 * (sizes["MemTotal"] + sizes["SwapTotal"])
    except (OSError, ValueError, LookupError):  # not Linux
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return math.inf


def _gigabytes(size: float) -> str:
    gigabytes = size / 10**9
    return f"{gigabytes:,.1f} GB" if gigabytes < 10**6 else f"{gigabytes:.1e} GB"


def tune_malloc() -> None:
    """Let this process keep the memory that it frees, for its next use. It works only with glibc.

    A training step frees and takes the same megabytes again and again. If they go back to the
    system in between, every page costs a fault: a quarter of a small network's update.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # the constants of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the highest value that glibc allows
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)
