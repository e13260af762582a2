"""Whole jobs whose source and output lie in an object store that fails: the same rows as without
faults, or a clear end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service import open_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.finish import STALL_S
from integrand.service.running.jobs import run_job
from integrand.workers import failpoints
from integrand.workers.storage.retries import RetryPolicy
from integrand.workers.storage.store import Access, Store
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import wait_until
from tests.plugins.proxy import Proxy, Rule, fault_proxy

pytestmark = pytest.mark.s3

ROWS, SHARD_ROWS = 60, 10
PATIENCE = RetryPolicy(deadline_s=60, answer_s=10, first_wait_s=0.01, longest_wait_s=0.2)


@dataclass
class S3Job:
    """Rows in two objects, a model on disk, and an output of its own for every run."""

    folder: JobFolder
    root: Uri
    proxy: Proxy
    halfway: int = 0
    """Requests of a fault-free run before it writes the third of its six shards."""

    @property
    def access(self) -> Access:
        return Access(self.proxy.endpoint_url, retry_policy=PATIENCE)

    def source(self) -> Uri:
        return self.root.child("data")

    def run(self, out: str, **changes: Any) -> RunManifest:
        fields = {
            "source": {"uri": str(self.source()), "row_id": "id"},
            "output": {"uri": str(self.root.child(out))},
            "compute": {"shard_rows": SHARD_ROWS, "batch_rows": 16},
        }
        spec = self.folder.spec(**fields | changes)
        return run_job(
            spec,
            base=str(self.folder.path),
            operator=Operator(trusted=(self.folder.module,), access=self.access),
            cluster=Cluster("local"),
            listen=lambda event: None,
        )


@pytest.fixture(scope="module")
def s3_job(s3_server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Job]:
    folder, store = JobFolder(tmp_path_factory.mktemp("job")), Store(s3_server.access)
    folder.write_model()
    root = Uri("s3", f"tests/{uuid4().hex}")
    for name, start in (("a.parquet", 0), ("b.parquet", ROWS // 2)):
        path = folder.write_rows(name, ROWS // 2, start=start)
        store.create(root.child("data", name), path.read_bytes())
    with fault_proxy(s3_server.endpoint_url, seed=4) as proxy:
        yield S3Job(folder, root, proxy)


@pytest.fixture(autouse=True)
def counted(s3_job: S3Job) -> Iterator[None]:
    s3_job.proxy.injected.clear()
    s3_job.proxy.seen.clear()
    yield
    s3_job.proxy.clear()


@pytest.fixture(scope="module")
def undisturbed(s3_job: S3Job) -> RunManifest:
    manifest = s3_job.run("undisturbed")
    s3_job.halfway = [request.key.rpartition("/")[2] for request in s3_job.proxy.seen].index(
        "part-00002.parquet"
    )
    return manifest


def check(s3_job: S3Job, s3_server, out: str, undisturbed: RunManifest) -> None:
    """What is stored, read beside the proxy, is what the fault-free run stored: every row once."""
    access = s3_server.access
    runs = [
        open_run(s3_job.root.child(place, undisturbed.run_id), access=access)
        for place in (out, "undisturbed")
    ]
    rows, expected = (run.to_pandas() for run in runs)
    assert sorted(rows["row_id"]) == list(range(ROWS))
    assert rows.equals(expected)
    latest = open_run(s3_job.root.child(out), access=access)
    assert (latest.manifest.complete, latest.manifest.digest) == (True, undisturbed.digest)
    names = [
        entry.uri.name
        for entry in Store(access).list(s3_job.root.child(out, undisturbed.run_id, "data"))
    ]
    assert names == [f"part-{shard:05d}.parquet" for shard in range(ROWS // SHARD_ROWS)]


def attempts(s3_job: S3Job, s3_server, out: str, run: RunManifest) -> list[bytes]:
    store = Store(s3_server.access)
    return [
        store.read(entry.uri)
        for entry in store.list(s3_job.root.child(out, run.run_id, "_attempts"))
    ]


def test_a_fifth_of_all_requests_fails(s3_job: S3Job, s3_server, undisturbed: RunManifest) -> None:
    faults = (
        "500",
        "503",
        "conflict",
        "timeout",
        "reset",
        "truncated",
        "short",
        "lost_ack",
        "stale",
        "delay",
    )
    s3_job.proxy.inject(*(Rule(fault, times=None, share=0.022, seconds=0.05) for fault in faults))
    manifest = s3_job.run("mixture")
    struck, asked = sum(s3_job.proxy.injected.values()), len(s3_job.proxy.seen)
    assert manifest.digest == undisturbed.digest
    assert struck > asked / 8, s3_job.proxy.injected
    check(s3_job, s3_server, "mixture", undisturbed)


def test_the_answer_to_every_write_is_lost_twice(
    s3_job: S3Job, s3_server, undisturbed: RunManifest
) -> None:
    """Plan, shards, manifest and pointer; aiohttp repeats a PUT once by itself, so the second loss
    is our own try's.
    """
    s3_job.proxy.inject(Rule("lost_ack", "PUT", times=2, each=True))
    assert s3_job.run("lost").digest == undisturbed.digest
    written = {
        request.key.rpartition("/")[2] for request in s3_job.proxy.seen if request.method == "PUT"
    }
    assert {
        "_plan.json",
        "part-00000.parquet",
        "part-00005.parquet",
        "_manifest.json",
        "test.json",
    } <= written
    check(s3_job, s3_server, "lost", undisturbed)
    assert attempts(s3_job, s3_server, "lost", undisturbed) == []


def test_every_listing_is_as_old_as_the_run(
    s3_job: S3Job, s3_server, undisturbed: RunManifest
) -> None:
    """A run that goes on in another process lists nothing of what the first one committed."""
    s3_job.proxy.inject(
        Rule("stale", "LIST", times=None), Rule("reset", times=None, after=s3_job.halfway)
    )
    with pytest.raises(TransientError):
        s3_job.run("stale")
    s3_job.proxy.clear()
    s3_job.proxy.inject(Rule("stale", "LIST", times=None))
    assert s3_job.run("stale").digest == undisturbed.digest
    assert s3_job.proxy.injected["stale"] >= 1
    check(s3_job, s3_server, "stale", undisturbed)


def test_an_attempt_whose_record_was_not_acknowledged_counts_once(
    s3_job: S3Job, s3_server, undisturbed: RunManifest, tmp_path: Path
) -> None:
    """Two charged attempts are allowed: one counted twice would condemn the shard."""
    row = SHARD_ROWS * 2 + 5
    marked = s3_job.folder.write_rows("marked.parquet", ROWS // 2, marks=(row,))
    Store(s3_server.access).replace(s3_job.root.child("marked", "a.parquet"), marked.read_bytes())
    changes = {
        "source": {"uri": str(s3_job.root.child("marked")), "row_id": "id"},
        "model": s3_job.folder.model(faults="raise:once", folder=str(tmp_path)),
        "compute": {"shard_rows": SHARD_ROWS, "batch_rows": 16, "attempts": 2},
    }
    s3_job.proxy.inject(Rule("lost_ack", "PUT", key="*/_attempts/*", times=2, each=True))
    manifest = s3_job.run("attempts", **changes)
    assert (manifest.complete, manifest.rows_in) == (True, ROWS // 2)
    assert s3_job.proxy.injected["lost_ack"] == 2
    assert len(attempts(s3_job, s3_server, "attempts", manifest)) == 1


@pytest.mark.parametrize(
    ("fault", "said"), [("reset", "an answer from the store"), ("expired", "valid credentials")]
)
def test_a_store_that_is_gone_ends_the_run_as_retryable_and_the_same_command_completes_it(
    s3_job: S3Job, s3_server, undisturbed: RunManifest, fault: str, said: str
) -> None:
    s3_job.proxy.inject(Rule(fault, times=None, after=s3_job.halfway))
    with pytest.raises(TransientError, match=said) as raised:
        s3_job.run(fault)
    assert (raised.value.exit_code, s3_job.proxy.injected[fault] > 0) == (4, True)
    stored = Store(s3_server.access).list(s3_job.root.child(fault, undisturbed.run_id, "data"))
    assert 0 < len(stored) < ROWS // SHARD_ROWS
    s3_job.proxy.clear()
    assert s3_job.run(fault).digest == undisturbed.digest
    check(s3_job, s3_server, fault, undisturbed)


def test_an_input_that_is_replaced_while_the_run_reads_it_stops_it(
    s3_job: S3Job, s3_server, undisturbed: RunManifest, tmp_path: Path
) -> None:
    """Both files are replaced once the first shard is committed; the next shard may have been read
    by then.
    """
    store, go, token = Store(s3_server.access), tmp_path / "go", tmp_path / "token"
    for name in ("a.parquet", "b.parquet"):
        store.create(s3_job.root.child("replaced", name), store.read(s3_job.source().child(name)))
    raised: list[BaseException] = []

    def run() -> None:
        with pytest.raises(IntegrityError, match=r"as planned|changed input") as caught:
            s3_job.run(
                "unfinished", source={"uri": str(s3_job.root.child("replaced")), "row_id": "id"}
            )
        raised.append(caught.value)

    failpoints.arm(f"shard.committed=wait:{go}@{token}")
    try:
        running = threading.Thread(target=run)
        running.start()
        wait_until(token.exists)
        for name in ("a.parquet", "b.parquet"):
            store.replace(
                s3_job.root.child("replaced", name),
                store.read(s3_job.source().child(name)) + b"more",
            )
        go.touch()
        running.join()
    finally:
        failpoints.arm("")
    assert [error.exit_code for error in raised] == [6]
    with pytest.warns(UserWarning, match="is unfinished"):
        open_run(s3_job.root.child("unfinished"), access=s3_server.access)


def test_a_worker_gives_a_store_up_before_it_counts_as_hung() -> None:
    """Else a fault of the store would be charged to the shard."""
    assert RetryPolicy().deadline_s < STALL_S
