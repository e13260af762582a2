"""Where the workers of a job run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PoolKind = Literal["auto", "ray", "local"]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, or this process.

    pool      `ray` actors; `local`: one worker in this process; `auto`: this process for small
              jobs without a cluster
    address   of a Ray cluster; None starts one on this machine
    """

    pool: PoolKind = "auto"
    address: str | None = None
