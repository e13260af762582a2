"""Which pool a job gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from integrand.schemas.specs.compute import Compute
from integrand.service.cluster import Cluster
from integrand.service.pools.base import Item, Made, Pool
from integrand.service.pools.local import LocalPool

SMALL_S = 20.0
"""Work of one process below which starting Ray and its workers, some 6 s, is not worth while."""
_FEW_ITEMS = 8


class Undecided:
    """Pre-passes before it is known which pool a job gets: of few items in this process, of more on
    Ray.
    """

    def __init__(self, make_workers: Callable[[], Pool]) -> None:
        self._local = LocalPool()
        self._make_workers = make_workers
        self._on_ray: Pool | None = None

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        if len(items) <= _FEW_ITEMS:
            return self._local.map(function, items)
        return self._workers().map(function, items)

    def _workers(self) -> Pool:
        """Made when it is asked for: most small jobs never load Ray."""
        if self._on_ray is None:
            self._on_ray = self._make_workers()
        return self._on_ray

    def prepare(self) -> None:
        pass

    def settle(self, work_s: float, *, begun: bool) -> Pool:
        """This process for a small job, Ray for any other.

        A run that was begun before goes to Ray, for it may have died of its rows here; so does one
        whose pre-passes have started Ray.
        """
        small = work_s < SMALL_S and not begun and self._on_ray is None
        return self._local if small else self._workers()

    def close(self) -> None:
        self._local.close()
        if self._on_ray is not None:
            self._on_ray.close()


def make_pool(cluster: Cluster, compute: Compute, *, allow_unauthenticated: bool = False) -> Pool:
    """The pool asked for, `auto` being Ray; a local Ray is given room for as many workers as the
    job may ask for.
    """
    if cluster.pool == "local":
        return LocalPool()
    from integrand.service.pools.ray import RayPool  # it loads Ray

    cpus = compute.worker_range.max * compute.cpus_per_worker
    return RayPool(cluster.address, cpus=cpus, allow_unauthenticated=allow_unauthenticated)


def make_planning_pool(
    cluster: Cluster, compute: Compute, *, allow_unauthenticated: bool = False
) -> Pool | Undecided:
    """The same for a job without a plan: under `auto`, without a cluster and GPUs, it is not
    settled yet.
    """
    make = partial(make_pool, cluster, compute, allow_unauthenticated=allow_unauthenticated)
    asked_for = cluster.pool != "auto" or cluster.address is not None
    return make() if asked_for or compute.gpus_per_worker > 0 else Undecided(make)
