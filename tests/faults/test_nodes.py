"""Nodes of a Ray cluster that are taken away, die or run out of memory, under a job that goes on
elsewhere.

All on one cluster; what takes time is Ray: starting nodes and workers, and finding out that a node
is dead.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.workers import failpoints
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import wait_until

pytestmark = pytest.mark.ray
SETTINGS = {"RAY_raylet_start_wait_time_s": "120"}


@dataclass
class Nodes:
    """A head without CPUs, and nodes that come and go; workers read their strikes from `points`."""

    cluster: Any
    points: Path
    all: dict[str, Any] = field(default_factory=dict)

    def add(self, cpus: int = 1) -> None:
        node = self.cluster.add_node(num_cpus=cpus)
        self.all[node.node_id] = node

    def living(self) -> set[str]:
        import ray

        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def of(self, token: Path) -> str:
        """The node of the worker that stands at a point, once one does: its parent is the
        raylet.
        """
        wait_until(token.exists)
        parent = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{token.read_text()}/status").read_text())
        assert parent
        raylets = {self.raylet(name): name for name in self.all}
        return raylets[int(parent[1])]

    def raylet(self, name: str) -> int:
        return int(self.all[name].all_processes["raylet"][0].process.pid)

    def drain(self, name: str, seconds: float) -> None:
        """Tell the cluster, as a cloud's agent does, that a node is preempted in so many
        seconds.
        """
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        ends = int((time.time() + seconds) * 1000)
        assert GcsClient(address=self.cluster.address).drain_node(name, reason, "spot", ends)[0]

    def remove(self, name: str) -> None:
        self.cluster.remove_node(self.all.pop(name), allow_graceful=False)


def ask_for_token() -> None:
    """As `ray.init` does for a Ray of its own: one process cannot go from closed clusters to open
    ones and back.
    """
    from ray._private.authentication import authentication_token_setup as tokens

    if not tokens._get_default_token_path().exists():
        tokens.generate_and_save_token()
    tokens.enable_token_auth_by_default()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    points = tmp_path_factory.mktemp("points") / "strikes"
    points.touch()
    ask_for_token()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**SETTINGS, failpoints.VARIABLE: f"@{points}"}.items():
            environment.setenv(name, value)
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        ray.init(address=made.address, log_to_driver=False)
        yield Nodes(made, points)
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    """Two fresh nodes of one CPU."""
    cluster.add(), cluster.add()
    yield cluster
    cluster.points.write_text("")
    for name in list(cluster.all):
        cluster.remove(name)


@pytest.fixture
def undisturbed(job: JobFolder) -> RunManifest:
    """The fault-free run of three shards."""
    job.write_rows(count=30)
    return job.run(output={"uri": "undisturbed"})


def run_beside(
    job: JobFolder, nodes: Nodes, strikes: str, disturb: Callable[[], None], **changes: Any
) -> list[Attempt]:
    """Run the job under these strikes while `disturb` acts on the cluster; the attempts that
    failed.

    Workers are held for longer than a model may stand still, so nothing stalls here.
    """
    nodes.points.write_text(strikes)
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            disturb()
        except BaseException as error:  # noqa: BLE001 — raised below, where a test sees it
            raised.append(error)

    beside = threading.Thread(target=guarded, daemon=True)
    beside.start()
    compute = {"shard_rows": 10, "batch_rows": 16, "stall_s": 600}
    manifest = job.run("ray", address=nodes.cluster.address, **{"compute": compute} | changes)
    beside.join(60)
    assert raised == []
    places = sorted((job.path / "out" / manifest.run_id / "_attempts").glob("*/*.json"))
    return [Attempt.model_validate_json(place.read_bytes()) for place in places]


def held(folder: Path, *points: str) -> str:
    """Strikes that hold the first worker at each point for ever, or until `go-POINT` is there."""
    return ";".join(f"{point}=wait:{folder}/go-{point}@{folder}/{point}" for point in points)


def test_a_shard_that_is_preempted_three_times_is_not_to_blame(
    job: JobFolder, nodes: Nodes, undisturbed: RunManifest, tmp_path: Path
):
    """Its worker is held, so the shard is dropped before the node goes. Three graces of twelve
    seconds.
    """
    points = ("shard.begun", "shard.read", "shard.computed")
    drained: list[str] = []
    nodes.add(), nodes.add()

    def disturb() -> None:
        for point in points:
            drained.append(nodes.of(tmp_path / point))
            nodes.drain(drained[-1], seconds=12)

    one = {"shard_rows": 30, "batch_rows": 16, "stall_s": 600}
    lost = run_beside(job, nodes, held(tmp_path, *points), disturb, compute=one)
    assert len(set(drained)) == 3
    assert [(a.shard, a.outcome, a.charged) for a in lost] == [("00000", "preempted", False)] * 3
    check_rows(job, undisturbed)
    wait_until(lambda: not nodes.living() & set(drained))


def test_a_worker_on_a_draining_node_finishes_its_shard_and_leaves(
    job: JobFolder, nodes: Nodes, tmp_path: Path, undisturbed: RunManifest
):
    """The node, which waits for its last worker, is gone long before its time; the next shard runs
    elsewhere.
    """
    seen: list[str] = []

    def disturb() -> None:
        seen.append(nodes.of(tmp_path / "shard.computed"))
        nodes.drain(seen[0], seconds=600)
        time.sleep(8)  # for the driver to hear of it
        (tmp_path / "go-shard.computed").touch()
        seen.append(nodes.of(tmp_path / "second"))
        wait_until(lambda: seen[0] not in nodes.living())
        (tmp_path / "go").touch()

    # Whoever begins a second shard is held until the node is gone: that must be another worker.
    strikes = (
        f"{held(tmp_path, 'shard.computed')};shard.begun=wait:{tmp_path}/go#2@{tmp_path}/second"
    )
    lost = run_beside(job, nodes, strikes, disturb)
    assert lost == []
    assert seen[0] != seen[1]
    check_rows(job, undisturbed)


@pytest.mark.parametrize("signal_number", [None, signal.SIGTERM])
def test_a_node_that_dies_under_a_shard(
    job: JobFolder,
    nodes: Nodes,
    undisturbed: RunManifest,
    tmp_path: Path,
    signal_number: signal.Signals | None,
):
    """Killed at once, or its raylet told to end: the shard is run elsewhere, and nothing is charged
    to it.
    """

    def disturb() -> None:
        name = nodes.of(tmp_path / "shard.computed")
        nodes.remove(name) if signal_number is None else os.kill(nodes.raylet(name), signal_number)

    lost = run_beside(job, nodes, held(tmp_path, "shard.computed"), disturb)
    assert [(a.shard, a.outcome, a.charged) for a in lost] == [("00000", "lost", False)]
    check_rows(job, undisturbed)


def test_a_worker_that_the_memory_monitor_kills_beside_others_is_not_to_blame(
    job: JobFolder, cluster: Nodes, tmp_path: Path
):
    """One worker takes more memory than its node allows it; another is held beside it."""
    from ray._private.utils import get_system_memory, get_used_memory

    total, used = get_system_memory(), get_used_memory()
    grow = (  # a fifth of it all
        f"held = [torch.ones({total // 800}) for _ in range(40) if time.sleep(0.1) is None]"
    )
    job.write_rows(count=40, marks=(25,))
    job.write_model(
        f"if (x[:, 0] == 1000).any() and self.first_time('grown'):\n    {grow}\n   "
        " time.sleep(600)\nreturn self.logits(x)"
    )
    model = job.model(folder=str(tmp_path))
    (tmp_path / "grown").touch()
    undisturbed = job.run(model=model, output={"uri": "undisturbed"})
    (tmp_path / "grown").unlink()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_memory_usage_threshold", f"{(used + total / 8) / total:.3f}")
        environment.setenv("RAY_memory_monitor_refresh_ms", "100")
        cluster.add(cpus=2)
    sizes = {"shard_rows": 10, "batch_rows": 16, "stall_s": 600, "workers": {"min": 2, "max": 2}}

    def release() -> None:
        wait_until(lambda: bool(list((job.path / "out").glob("*/_attempts/*/*.json"))))
        (tmp_path / "go-shard.begun").touch()

    lost = run_beside(
        job, cluster, held(tmp_path, "shard.begun"), release, model=model, compute=sizes
    )
    for name in list(cluster.all):
        cluster.remove(name)
    assert {a.outcome for a in lost} == {"memory"}
    assert not min(lost, key=lambda a: a.at).charged, "the next may have been alone by then"
    check_rows(job, undisturbed)
