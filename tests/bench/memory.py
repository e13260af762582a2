"""Peak memory of a contender: resident bytes that a fresh process gains while it attributes
a case.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from pathlib import Path

import torch
from peers import Contender
from zoo import Case

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(contender: Contender, case: Case) -> int | None:
    """Peak resident size during the call less the resident size before it; None where there is no
    /proc (not Linux).
    """
    if not STATUS.exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_gain, (contender, case))


def _gain(contender: Contender, case: Case) -> int:
    torch.set_num_threads(1)
    # imports, kernels and whatever else is there once, however many rows
    contender(case.take(slice(0, 1)))
    gc.collect()
    libc = ctypes.CDLL(None)
    # glibc keeps freed blocks: a call that fills them would seem to take nothing
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    CLEAR.write_text("5")  # the peak starts over: proc(5)
    before = _status("VmRSS")
    contender(case)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
