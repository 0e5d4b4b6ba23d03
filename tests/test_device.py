"""What the machine can do: decided by its instructions, and never by how busy it is."""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from conal_rl import device
from conal_rl.device import has_bfloat16, resolve_device
from conal_rl.errors import ConfigError
from tests.helpers.toy import make_agent

CPU = torch.device("cpu")
ZEN3 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
PROCESSORS = {
    "zen 3, which has neither": (ZEN3, False),
    "zen 4, which has avx-512": (ZEN3 | {"avx512_f": True, "avx512_bf16": True}, True),
    "sapphire rapids": (ZEN3 | {"avx512_bf16": True, "amx_bf16": True, "amx_tile": True}, True),
    "amx only": (ZEN3 | {"amx_bf16": True}, True),
    "ice lake, avx-512 without bfloat16": (ZEN3 | {"avx512_f": True, "avx512_vnni": True}, False),
    "no x86": ({"architecture": "aarch64"}, False),
}


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_bfloat16_follows_instructions(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, expected = PROCESSORS[processor]
    monkeypatch.setattr(device, "_capabilities", lambda: features)
    assert has_bfloat16(CPU) is expected


def test_bfloat16_needs_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> float:
        raise AssertionError("the clock was asked")

    monkeypatch.setattr(time, "perf_counter", asked)
    monkeypatch.setattr(time, "monotonic", asked)
    has_bfloat16(CPU)


@pytest.mark.parametrize("isa", ["AVX2", "avx512_core"])
def test_bfloat16_heeds_onednn_limit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert not has_bfloat16(CPU)


def test_bfloat16_allows_wide_onednn_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert has_bfloat16(CPU)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "NO AVX", reason="x86 only")
def test_capabilities_agree_with_the_kernel() -> None:
    """The kernel lists the same flags, where it lists any."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    if not lines:
        pytest.skip("not an x86 processor")
    flags = set(lines[0].split(":", 1)[1].split())
    assert has_bfloat16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_resolve_device_refuses_what_is_not_here() -> None:
    assert resolve_device("device", "cpu") == CPU
    with pytest.raises(ConfigError, match=r"^device: "):
        resolve_device("device", "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"^--device: .*cuda:7"):
            resolve_device("--device", "cuda:7")


def test_an_agent_warns_of_emulated_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported in (False, True):
        monkeypatch.setattr(device, "_capabilities", lambda: {"amx_bf16": supported})  # noqa: B023
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_agent(None, mixed_precision=True)
        names = [str(warning.message).split(":")[0] for warning in caught]
        assert ("mixed_precision" in names) is not supported
