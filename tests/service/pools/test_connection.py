"""Ray starts beside whatever the caller does, and stops nothing of it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import subprocess, time
import numpy as np
from threadpoolctl import threadpool_info
from integrand.service.pools.connection import Connection

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

def fork_for_a_while(connection):
    end = time.monotonic() + 4
    while time.monotonic() < end:
        subprocess.Popen(["true"], preexec_fn=lambda: None).wait()  # as Ray starts its processes

Connection._initialize = fork_for_a_while
before = threads()
connection = Connection(None, 1, False)
connection.prepare()
rows, columns, times = np.ones((9, 64)), np.ones((64, 4096)), 0
while not connection._joining.done():
    rows @ columns
    times += 1
connection.settle()
connection.close()
assert threads() == before, (threads(), before)
print(times > 100)
"""


def test_numpy_does_not_hang_while_ray_starts_beside_it() -> None:
    """A fork ends the threads of OpenBLAS: a product that waited for them never came back. About
    7 s, for chance has to strike.
    """
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
