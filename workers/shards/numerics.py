"""What of a process decides bits: its switches, its kernels, and the versions of what is in it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from integrand.workers import kernels, switches
from integrand.workers.data.pictures import decoder


def pin_numerics(threads: int) -> None:
    """Process-wide switches that change bits: threads, deterministic kernels, no TF32."""
    torch.set_num_threads(threads)
    switches.pin()


def versions(device: str) -> dict[str, str]:
    """Of everything beside the plan that chooses the kernels, and with them the last bits."""
    found: dict[str, str] = {"torch": torch.__version__}
    for name in ("integrand", "pyarrow", "numpy"):
        found[name] = version(name)
    pillow = decoder()
    found |= {} if pillow is None else {"pillow": pillow}
    found["processor"] = processor(device)
    return found


def processor(device: str) -> str:
    """The CPU's architecture and kernels, and its vendor where they go by it; any CUDA device."""
    found = kernels.in_force()
    vendor = "" if found.portable else _cpu_vendor()
    cpu = [vendor, platform.machine(), str(found)]
    name = " ".join(filter(None, cpu))
    if device == "cuda":
        return f"{name} with {torch.cuda.get_device_name()}"
    return name


def _cpu_vendor() -> str:
    """As Linux tells it: `vendor_id` on x86, `CPU implementer` on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = (
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith(("vendor_id", "CPU implementer"))
    )
    return next(found, "")
