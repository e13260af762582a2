"""How this process comes to a Ray cluster: it joins one by address, or starts one of its own."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.client import ray as client
from threadpoolctl import threadpool_limits

from integrand.schemas.errors import IntegrandError, TransientError
from integrand.service.pools.clusters import RAY_TOKEN, protect_token, require_authentication
from integrand.service.pools.heartbeat import ClusterHeartbeat, probe


@dataclass
class Connection:
    """To the cluster at `address`, or to a local one with room for `cpus` where there is none.

    Off loopback either must ask for a token, unless `allow_unauthenticated`.
    """

    address: str | None
    cpus: float
    allow_unauthenticated: bool
    _heartbeat: ClusterHeartbeat | None = None
    _starter: ThreadPoolExecutor | None = None
    _joining: Future[None] | None = None
    _single_threaded: threadpool_limits | None = None
    _own_ray: bool = False

    def prepare(self) -> None:
        """Start the local cluster in a thread: 3 s, most of which it waits. One elsewhere is up
        already.

        The thread stays as long as the cluster: Linux kills what was told to die with its parent
        once the thread ends that made it, and Ray tells its daemons so. Until they are made, numpy
        multiplies in one thread: OpenBLAS ends its threads before each fork, and whoever waits for
        them meanwhile waits for ever.
        """
        if self.address is None and self._joining is None:
            self._single_threaded = threadpool_limits(1, user_api="blas")
            self._starter = ThreadPoolExecutor(1, "ray")
            self._joining = self._starter.submit(self._initialize)

    def open(self) -> None:
        """Be connected, now or already. SpecError for an open cluster, TransientError for one that
        does not answer.
        """
        if self._joining is None:
            self._initialize()
        else:
            self._started().result()
        if self._heartbeat is None and not client.is_connected():  # type: ignore[no-untyped-call]
            node: Any = ray._private.worker._global_node  # Ray has no public name for its socket
            address = ray.get_runtime_context().gcs_address
            self._heartbeat = ClusterHeartbeat(address, node.raylet_socket_name)

    def leaving(self) -> Mapping[str, float]:
        """Nodes that leave or left, and when; TransientError if the cluster is silent. A Ray Client
        is told nothing.
        """
        if self._heartbeat is None:
            return {}
        self._heartbeat.check()
        return self._heartbeat.leaving

    def settle(self) -> None:
        """Wait until a start that was begun has ended, and ask the cluster nothing any more."""
        if self._joining is not None:
            self._started()
        if self._heartbeat is not None:
            self._heartbeat.close()

    def close(self) -> None:
        """Shut down a cluster of our own; the caller's stays up."""
        if self._own_ray and ray.is_initialized():
            ray.shutdown()
        if self._starter is not None:
            self._starter.shutdown()

    def _started(self) -> Future[None]:
        """The start, once it has ended. OpenBLAS keeps a limit for each thread: whoever set it ends
        it.
        """
        assert self._joining is not None
        wait([self._joining])
        if self._single_threaded is not None:
            self._single_threaded.restore_original_limits()
            self._single_threaded = None
        return self._joining

    def _initialize(self) -> None:
        if ray.is_initialized():
            return
        with _sigterm_kept(), _as_transient(self.address):
            if self.address:
                self._join(self.address)
            else:
                self._embed()

    def _join(self, address: str) -> None:
        probe(address)
        if not self.allow_unauthenticated:
            require_authentication(_found(address))
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)

    def _embed(self) -> None:
        """A Ray of our own. It listens on every interface, and since 2.59 asks for the token that
        it makes.
        """
        # where there is no home Ray says so itself, unless the token is given otherwise
        with suppress(OSError):
            RAY_TOKEN.parent.mkdir(mode=0o700, exist_ok=True)
        protect_token(RAY_TOKEN)
        ray.init(
            address="local",
            num_cpus=max(2, math.ceil(self.cpus)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self._own_ray = True
        protect_token(RAY_TOKEN)
        try:
            if not self.allow_unauthenticated:
                require_authentication(ray.get_runtime_context().gcs_address)
        except IntegrandError:
            ray.shutdown()
            raise


@contextmanager
def _as_transient(address: str | None) -> Iterator[None]:
    """What keeps Ray from answering, as TransientError; errors of ours as they are."""
    try:
        yield
    except IntegrandError:
        raise
    except Exception as error:  # Ray raises no other type for a node that does not come up
        advice = (
            "check address, token and `ray status`"
            if address
            else "check memory and space in Ray's folder, /tmp/ray"
        )
        raise TransientError(
            f"Ray at {address or 'this machine'}",
            expected="a cluster that answers",
            seen=str(error)[:300],
            next_step=advice,
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, which aborts the process; only the main
    thread may object.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _found(address: str) -> str:
    """`host:port` of the cluster that Ray finds on this machine for `auto`; other addresses are
    what they say.
    """
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address  # Ray has no public way to ask

    return str(canonicalize_bootstrap_address(address))
