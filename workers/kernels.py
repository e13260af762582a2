"""Which kernels a processor's arithmetic takes: asked for before their first use, read back, and
named. What may be set later is in `switches.py`.

MKL picks a kernel by how its arguments lie in memory: rows that do not fill whole vectors then get
other last bits at odd places of a batch (on an AMD EPYC, 88 of 128 small networks). Its conditional
numerical reproducibility, with STRICT, does not (oneMKL developer guide, "Obtaining Numerically
Reproducible Results"). MKL, oneDNN and ATen each read one variable of the environment, once, at
their first use.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

MKL, ATEN, ONEDNN = "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"
STRICT: Mapping[str, str] = MappingProxyType({MKL: "AUTO,STRICT"})
"""What every process of ours asks for."""
PORTABLE: Mapping[str, str] = MappingProxyType({MKL: "COMPATIBLE", ATEN: "avx2", ONEDNN: "AVX2"})
"""What gives x86 processors of any vendor and generation the same bits, if they have AVX2.

COMPATIBLE is the one branch of MKL that is the same on processors of Intel and others: those take
no other by name.
"""
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE_CUDA: Mapping[str, str] = MappingProxyType({CUBLAS: ":4096:8"})
"""What processes that use CUDA need before they first do: without it matrix products differ from
run to run (cuBLAS documentation, "Results Reproducibility").
"""
_REPEATABLE_WORKSPACES = (REPEATABLE_CUDA[CUBLAS], ":16:8")
_BRANCHES = {
    1: "OFF",
    2: "AUTO",
    3: "COMPATIBLE",
    4: "SSE2",
    6: "SSSE3",
    7: "SSE4_1",
    8: "SSE4_2",
    9: "AVX",
    10: "AVX2",
    11: "AVX512_MIC",
    12: "AVX512",
    13: "AVX512_MIC_E1",
    14: "AVX512_E1",
}
_STRICT, _ALL = 0x10000, -1
"""From mkl_types.h: the flag beside a branch, and the question for both."""
_LIBRARIES = ("libtorch_cpu.so", "libmkl_rt.so.2", "libmkl_rt.so", "libtorch_cpu.dylib")
_READERS = ("mkl_serv_cbwr_get", "MKL_CBWR_Get")


@dataclass(frozen=True)
class Kernels:
    """What is in force in this process.

    mkl     MKL's branch, as `AUTO,STRICT`; empty where torch has no MKL
    aten    the vector instructions of ATen's own loops, as `AVX512`; `DEFAULT` without any
    onednn  the most that oneDNN was told to use; empty for all that there is
    """

    mkl: str
    aten: str
    onednn: str

    @property
    def strict(self) -> bool:
        """Whether MKL leaves alignment out of account; so does what has no MKL, as far as anybody
        knows.
        """
        return self.mkl in ("", "COMPATIBLE") or self.mkl.endswith(",STRICT")

    @property
    def portable(self) -> bool:
        """Whether these are the kernels that any x86 processor with AVX2 has."""
        return self == _PORTABLE_KERNELS

    def __str__(self) -> str:
        named = []
        if self.mkl:
            named.append(f"MKL {self.mkl}")
        if self.onednn:
            named.append(f"oneDNN up to {self.onednn}")
        if self.aten and self.aten != "DEFAULT":
            named.append(self.aten)
        return " ".join(named)


_PORTABLE_KERNELS = Kernels(PORTABLE[MKL], "AVX2", PORTABLE[ONEDNN])


def ask() -> None:
    """Put STRICT into the environment of this process and its children, and REPEATABLE_CUDA unless
    CUDA is in use already; a setting that is there stays.
    """
    wanted = dict(STRICT)
    if not _cuda_in_use():
        wanted |= REPEATABLE_CUDA
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _cuda_in_use() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def ask_portable() -> Kernels:
    """Put PORTABLE there, whatever was set, and read back; where they are not to be had, put back
    what was there before.
    """
    before = asked()
    os.environ.update(PORTABLE)
    found = in_force()
    if not found.portable:
        for name in PORTABLE:
            del os.environ[name]
        os.environ.update(before)
    return found


def asked() -> dict[str, str]:
    """What this process asks for: for the environment of workers elsewhere."""
    settings = {}
    for name in (MKL, ATEN, ONEDNN):
        if name in os.environ:
            settings[name] = os.environ[name]
    return settings


def in_force() -> Kernels:
    """Read back. MKL and ATen settle for what is asked now, if they have not been used before."""
    import torch  # not at the top: readers of results import this package without it

    mkl = _branch(torch.__file__) if torch.backends.mkl.is_available() else ""
    return Kernels(mkl, torch.backends.cpu.get_cpu_capability(), os.environ.get(ONEDNN, ""))


def _branch(torch_file: str) -> str:
    """MKL's branch in its own words; where it cannot be read, what was asked for, and that."""
    for name in _LIBRARIES:
        beside = Path(torch_file).parent / "lib" / name
        place = str(beside) if beside.exists() else name
        try:
            library = ctypes.CDLL(place)
        except OSError:
            continue
        reader = next((getattr(library, r) for r in _READERS if hasattr(library, r)), None)
        if reader is not None:
            return _branch_named(reader(_ALL))
    return f"{os.environ.get(MKL, 'OFF')} as asked"


def _branch_named(code: int) -> str:
    number = code & ~_STRICT
    branch = _BRANCHES.get(number, f"branch {number}")
    return f"{branch},STRICT" if code & _STRICT else branch


def portable_name() -> str:
    return str(_PORTABLE_KERNELS)


def objection(found: Kernels) -> str | None:
    """Why rows may get other last bits at other places of a batch, and what to do; None for strict
    kernels.
    """
    if found.strict:
        return None
    wanted = os.environ.get(MKL, "")
    if wanted == STRICT[MKL]:
        return (
            f"MKL was used before integrand was imported, so {MKL}={wanted} came too late and it is"
            f" {found.mkl}: a row's last bits may depend on its place; import integrand.workers"
            " first, or set it before Python starts"
        )
    return (
        f"{MKL}={wanted} is your own setting: kernels of MKL {found.mkl} may round a row by its"
        f" place; unset it for {STRICT[MKL]}"
    )


def objection_on_cuda() -> str | None:
    """Why matrix products on CUDA may differ from run to run, and what to do; None where cuBLAS was
    asked not to.
    """
    setting = os.environ.get(CUBLAS)
    if setting in _REPEATABLE_WORKSPACES:
        return None
    wanted = f"{CUBLAS}={REPEATABLE_CUDA[CUBLAS]}"
    if setting is None:
        return (
            "CUDA was used before integrand was imported, so that cuBLAS was not asked for the same"
            " bits in every run: import integrand.workers first, or set"
            f" {wanted} before Python starts"
        )
    return (
        f"{CUBLAS}={setting} is your own setting: matrix products may differ from run to run; unset"
        f" it for {wanted}"
    )


@cache
def warn_once(device: str) -> None:
    """Say in a notebook what speaks against the kernels of a device, the first time."""
    reasons = [objection(in_force())]
    if device == "cuda":
        reasons.append(objection_on_cuda())
    for reason in filter(None, reasons):
        warnings.warn(reason, stacklevel=3)
