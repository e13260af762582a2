"""A kind of job that only counts rows gets from this wing what attribution gets: resume, each task
once, attempts, quarantine, and the search for the rows that are to blame.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from integrand.schemas.errors import DataError
from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.schemas.specs.compute import Compute
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.planning.request import AnyRequest
from integrand.service.progress import Event, Listener, Notice, Tally
from integrand.service.running import kinds
from integrand.service.running.jobs import Running
from integrand.service.running.retry import retry_quarantined
from integrand.service.runs.manifest import read_attempts, read_pointer
from integrand.workers.storage.store import Store
from tests.plugins import counting
from tests.plugins.counting import Counting, CountManifest, CountSpec

COUNTING = Counting()
LOCAL = Cluster("local")


def ignore(event: Event) -> None: ...


def run(
    folder: Path, listen: Listener = ignore, cluster: Cluster = LOCAL, **fields: Any
) -> CountManifest:
    spec = CountSpec.model_validate({"output": {"uri": str(folder)}} | fields)
    running = Running(kind=COUNTING, operator=Operator(), cluster=cluster)
    return running.run(AnyRequest(spec, "/", Store(), ()), listen)


def objects(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/data/*.parquet")}


def attempts(folder: Path) -> list[Attempt]:
    store = Store()
    (plan,) = folder.glob("*/_plan.json")
    return list(read_attempts(store, store.parse(str(plan.parent))))


def test_every_row_is_counted_once_and_a_complete_run_is_left_alone(tmp_path: Path) -> None:
    events: list[Event] = []
    first = run(tmp_path, events.append)
    assert (first.complete, first.counted, first.rows_in, first.shards_done) == (True, 60, 60, 6)
    last = [event for event in events if isinstance(event, Tally)][-1]
    assert (last.shards_done, last.rows_done, last.highlights) == (6, 60, ("60 counted",))
    before = objects(tmp_path)
    pointer = read_pointer(Store(), Store().parse(str(tmp_path)), "counted")
    assert pointer is not None
    assert pointer.run_id == first.run_id
    events.clear()
    assert run(tmp_path, events.append) == first
    assert "complete already" in " ".join(e.text for e in events if isinstance(e, Notice))
    assert objects(tmp_path) == before


def test_an_interrupted_run_is_resumed_with_what_is_missing(tmp_path: Path) -> None:
    def stop_after_two(event: Event) -> None:
        if isinstance(event, Tally) and event.shards_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after_two)
    before = objects(tmp_path)
    assert len(before) == 2
    manifest = run(tmp_path)
    assert (manifest.complete, manifest.counted) == (True, 60)
    assert before.items() <= objects(tmp_path).items(), "what was committed was not run again"


def test_a_task_that_raises_is_tried_again(tmp_path: Path) -> None:
    manifest = run(tmp_path, flaky="00003")
    assert (manifest.complete, manifest.counted) == (True, 60)
    assert [(a.shard, a.outcome, a.charged) for a in attempts(tmp_path)] == [
        ("00003", "raised", True)
    ]


def test_rows_on_which_a_task_raises_are_found_and_the_others_are_counted(tmp_path: Path) -> None:
    manifest = run(tmp_path, deadly=(23, 28))
    assert (manifest.complete, manifest.counted, manifest.rows_in) == (True, 58, 60)
    assert {a.shard for a in attempts(tmp_path)} == {"00002"}
    assert {a.rows for a in attempts(tmp_path)} >= {(3, 4), (8, 9)}


def test_a_task_that_cannot_be_read_is_given_up_until_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt, out = tmp_path / "spoilt", tmp_path / "out"
    spoilt.mkdir()
    (spoilt / "00004").touch()
    partial = run(out, unreadable=str(spoilt))
    assert (partial.complete, partial.counted) == (False, 50)
    assert [(q.shard, q.rows) for q in partial.quarantined] == [("00004", 10)]
    (spoilt / "00004").unlink()
    again = run(out, unreadable=str(spoilt))
    assert again.quarantined == partial.quarantined, "not tried again by itself"
    with pytest.raises(DataError, match="kind count"):
        retry_quarantined(out / partial.run_id, cluster=LOCAL)
    monkeypatch.setattr(kinds, "KINDS", {**kinds.KINDS, "count": COUNTING})
    manifest = retry_quarantined(out / partial.run_id, cluster=LOCAL, listen=ignore)
    assert isinstance(manifest, CountManifest)
    assert (manifest.complete, manifest.counted, manifest.quarantined) == (True, 60, ())
    assert not list(out.glob("*/_partial.json"))


@pytest.mark.ray
def test_a_row_that_kills_its_worker_is_found_on_actors(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(counting)  # workers do not see the tests
    try:
        manifest = run(
            tmp_path,
            cluster=Cluster("ray"),
            compute=Compute(attempts=2, workers=2),
            tasks=3,
            rows=2,
            deadly=(3,),
            kills=True,
        )
    finally:
        cloudpickle.unregister_pickle_by_value(counting)
    assert (manifest.complete, manifest.counted, manifest.rows_in) == (True, 5, 6)
    found = Counter((a.outcome, a.rows) for a in attempts(tmp_path) if a.charged)
    assert {a.shard for a in attempts(tmp_path) if a.charged} == {"00001"}
    assert found[("killed_worker", (1, 2))] == 1
