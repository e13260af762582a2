"""The dispatch loop against a scripted pool: what is charged, who is tried alone, what ends a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import Plan, Quantiles, Shard, ShardFooter
from integrand.schemas.specs import Compute, Limits
from integrand.schemas.uris import Uri
from integrand.service.pools import Failure, LossKind, Outcome
from integrand.service.runner import UNCHARGED_IN_A_ROW, Dispatch, Ledger, Tally, read_ledger
from integrand.workers.store import Store
from integrand.workers.worker import Setup
from tests.plugins.jobs import JobFolder

DONE = "done"
Event = LossKind | str
LOSSES = ("killed_worker", "stalled", "preempted", "lost", "memory")


@dataclass
class ScriptedPool:
    """Workers whose shards end as a script says, by shard id; a shard without further lines ends well."""

    script: dict[str, list[Event]]
    workers: int = 1
    error: dict[str, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.busy: dict[int, Shard] = {}
        self.ready = set(range(self.workers))
        self.starting: set[int] = set()
        self.runs: list[tuple[int, str, int]] = []
        self.replaced: list[int] = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    def start(self, setup: Setup, compute: Compute, shards: int, stall_s: float) -> None: ...

    def idle(self) -> list[int]:
        return sorted(self.ready - set(self.busy))

    def submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        assert worker in self.ready
        assert worker not in self.busy
        assert shard.id not in [s.id for s in self.busy.values()]
        self.busy[worker] = shard
        self.runs.append((worker, shard.id, len(self.busy)))

    def wait(self, timeout_s: float) -> list[Outcome]:
        self.ready |= self.starting
        self.starting.clear()
        if not self.busy:
            return []
        worker, shard = self.busy.popitem()
        event = self.script[shard.id].pop(0) if self.script.get(shard.id) else DONE
        if event == DONE:
            return [Outcome(worker, shard, footer(shard))]
        failure = Failure(event, f"scripted {event}", "Traceback: x", "node-1", self.error.get(shard.id))  # type: ignore[arg-type]
        return [Outcome(worker, shard, failure)]

    def replace(self, worker: int) -> None:
        assert worker not in self.busy
        self.replaced.append(worker)
        self.ready.remove(worker)
        self.starting.add(worker)

    def retire(self, worker: int) -> None:
        assert worker not in self.busy
        self.ready.remove(worker)

    def close(self) -> None: ...


def test_the_clock_starts_with_the_first_shard_not_with_the_workers(ledger: Ledger) -> None:
    dispatch = Dispatch(ScriptedPool({}), ledger.plan, ledger, [], lambda tally: None)
    assert (dispatch.tally().seconds, dispatch.tally().eta_s) == (0.0, None)
    dispatch.run()
    assert dispatch.tally().seconds > 0


def footer(shard: Shard) -> ShardFooter:
    return ShardFooter(
        run_id="r", shard=shard.id, plan_sha256="p", rows_in=shard.rows, rows_out=shard.rows, statuses={"ok": shard.rows},
        gap=Quantiles(), error=Quantiles(), error_histogram={}, gap_histogram={}, evaluations=8 * shard.rows,
        padded_evaluations=0, digest="0" * 64, batch_rows=16, seconds={}, node="n", versions={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A real plan of six shards, ten rows each."""
    folder = JobFolder(tmp_path_factory.mktemp("job"))
    folder.write_rows(count=60)
    folder.write_model()
    return folder.plan()


@pytest.fixture
def ledger(tmp_path: Path, planned: Plan) -> Ledger:
    return Ledger(Store(), Uri("file", str(tmp_path / "run")), planned)


def under(ledger: Ledger, **compute: Any) -> Ledger:
    """The ledger of the same plan with other limits."""
    most = compute.pop("max_quarantined", None)
    spec = ledger.plan.spec
    changed = spec.model_copy(update={"compute": spec.compute.model_copy(update=compute),
                                      "limits": Limits(max_quarantined=most)})  # fmt: skip
    return Ledger(ledger.store, ledger.run, ledger.plan.model_copy(update={"spec": changed}))


def dispatch(pool: ScriptedPool, ledger: Ledger, stored: Sequence[ShardFooter] = ()) -> Dispatch:
    return Dispatch(pool, ledger.plan, ledger, stored, lambda tally: None)


def run(pool: ScriptedPool, ledger: Ledger, stored: Sequence[ShardFooter] = ()) -> set[str]:
    return set(dispatch(pool, ledger, stored).run())


ALL = {f"{i:05d}" for i in range(6)}


def test_every_shard_runs_once_where_nothing_fails(ledger: Ledger):
    pool = ScriptedPool({}, workers=2)
    assert run(pool, ledger) == ALL
    assert sorted(shard for _, shard, _ in pool.runs) == sorted(ALL)
    assert ledger.attempts == {}


def test_stored_shards_are_not_run_again(ledger: Ledger):
    pool = ScriptedPool({})
    stored = [footer(s) for s in ledger.plan.shards[:4]]
    assert run(pool, ledger, stored) == ALL
    assert [shard for _, shard, _ in pool.runs] == ["00004", "00005"]


@pytest.mark.parametrize(
    ("event", "beside", "charged"),
    [
        ("raised", True, True), ("killed_worker", True, True), ("stalled", True, True),
        ("memory", False, True), ("memory", True, False),
        ("preempted", False, False), ("lost", False, False), ("storage", False, False),
    ],
)  # fmt: skip
def test_what_is_charged(ledger: Ledger, event: LossKind, beside: bool, charged: bool):
    shard = ledger.plan.shards[0]
    found = ledger.record(shard, Failure(event, "why", "Traceback: x", "node-1"), alone=False, beside=beside)
    assert (found.charged, found.outcome, found.reason, found.detail, found.node) == (
        charged, event, "why", "Traceback: x", "node-1",
    )  # fmt: skip


def test_a_shard_that_raises_is_given_up_after_its_attempts(ledger: Ledger):
    pool = ScriptedPool({"00002": ["raised"] * 9}, workers=2)
    assert run(pool, ledger) == ALL - {"00002"}
    assert [shard for _, shard, _ in pool.runs].count("00002") == 3
    given_up = ledger.quarantined["00002"]
    assert (given_up.attempts, given_up.rows, given_up.reason) == (3, 10, "scripted raised")
    assert (given_up.detail, given_up.node) == ("Traceback: x", "node-1")


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_the_specs(ledger: Ledger, attempts: int):
    pool = ScriptedPool({"00002": ["raised"] * 9})
    run(pool, under(ledger, attempts=attempts))
    assert [shard for _, shard, _ in pool.runs].count("00002") == attempts


def test_a_shard_that_fails_at_first_is_done_in_the_end(ledger: Ledger):
    pool = ScriptedPool({"00000": ["raised", "storage", "raised"], "00003": ["preempted", "killed_worker"]})
    assert run(pool, ledger) == ALL
    assert ledger.quarantined == {}


@pytest.mark.parametrize("event", ["killed_worker", "stalled"])
def test_a_shard_lost_twice_is_tried_alone_and_then_condemned(ledger: Ledger, event: str):
    pool = ScriptedPool({"00001": [event] * 9}, workers=3)
    assert run(pool, ledger) == ALL - {"00001"}
    attempts = ledger.attempts["00001"]
    assert [a.alone for a in attempts] == [False, False, True]
    lone = [i for i, (_, shard, _) in enumerate(pool.runs) if shard == "00001"][-1]
    worker, _, in_flight = pool.runs[lone]
    assert (worker in pool.replaced, in_flight) == (True, 1)
    assert lone == len(pool.runs) - 1, "nothing was given out beside it, and all others came first"


def test_a_shard_that_survives_alone_is_innocent(ledger: Ledger):
    pool = ScriptedPool({"00001": ["killed_worker", "stalled"]}, workers=2)
    assert run(pool, ledger) == ALL
    assert (len(ledger.attempts["00001"]), ledger.quarantined) == (2, {})


def test_two_suspects_are_tried_one_after_the_other(ledger: Ledger):
    pool = ScriptedPool({"00001": ["killed_worker"] * 2, "00004": ["stalled"] * 3}, workers=3)
    assert run(pool, ledger) == ALL - {"00004"}
    assert {shard: in_flight for _, shard, in_flight in pool.runs[-2:]} == {"00001": 1, "00004": 1}


def test_losses_that_are_explained_make_no_suspect(ledger: Ledger):
    pool = ScriptedPool({"00001": ["preempted", "lost", "preempted", "lost"]}, workers=2)
    assert run(pool, ledger) == ALL
    assert not any(a.alone or a.charged for a in ledger.attempts["00001"])


def test_memory_beside_other_work_is_tried_alone_and_only_then_counts(ledger: Ledger):
    pool = ScriptedPool({"00001": ["memory"] * 9}, workers=2)
    assert run(pool, ledger) == ALL - {"00001"}
    assert [(a.alone, a.charged) for a in ledger.attempts["00001"]][-1] == (True, True)


@pytest.mark.parametrize("event", ["storage", "preempted", "lost"])
def test_faults_in_a_row_end_the_run_as_retryable(ledger: Ledger, event: str):
    with pytest.raises(TransientError, match="faults in a row"):
        run(ScriptedPool({"00001": [event] * 9}), ledger)
    assert len(ledger.attempts["00001"]) == UNCHARGED_IN_A_ROW
    assert ledger.quarantined == {}


def test_an_integrity_error_stops_the_run_at_once(ledger: Ledger):
    pool = ScriptedPool({"00002": ["raised"]}, error={"00002": IntegrityError("changed")})
    with pytest.raises(IntegrityError, match="changed"):
        run(pool, ledger)
    assert ledger.attempts == {}
    assert len(pool.runs) == 3


def test_too_many_quarantined_stop_the_run_early(ledger: Ledger):
    pool = ScriptedPool({shard: ["raised"] * 9 for shard in ALL})
    assert run(pool, under(ledger, max_quarantined=1)) == set()
    limited = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert len(limited.quarantined) == 2


def test_a_run_above_its_limit_is_not_taken_up_again(ledger: Ledger):
    run(ScriptedPool({"00000": ["raised"] * 9}), ledger)
    stopped = under(ledger, max_quarantined=0)
    stopped.quarantined = ledger.quarantined
    pool = ScriptedPool({})
    run(pool, stopped)
    assert pool.runs == []


def test_no_limit_lets_the_others_finish(ledger: Ledger):
    assert run(ScriptedPool({shard: ["raised"] * 9 for shard in sorted(ALL)[:5]}), ledger) == {"00005"}


def test_attempts_outlive_the_driver(ledger: Ledger):
    with pytest.raises(KeyboardInterrupt):
        interrupted(ScriptedPool({"00000": ["raised", "raised"]}), ledger, after=2)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.outcome for a in again.attempts["00000"]] == ["raised", "raised"]
    pool = ScriptedPool({"00000": ["raised"] * 9})
    assert run(pool, again) == ALL - {"00000"}
    assert [shard for _, shard, _ in pool.runs].count("00000") == 1
    assert read_ledger(ledger.store, ledger.run, ledger.plan).quarantined == again.quarantined


def interrupted(pool: ScriptedPool, ledger: Ledger, after: int) -> None:
    def stop(tally: Tally) -> None:
        if sum(map(len, ledger.attempts.values())) >= after:
            raise KeyboardInterrupt

    Dispatch(pool, ledger.plan, ledger, (), stop).run()


def test_a_suspect_of_an_earlier_driver_is_tried_alone_after_the_others(ledger: Ledger):
    shard = ledger.plan.shards[0]
    for _ in range(2):
        ledger.record(shard, Failure("killed_worker", "died"), alone=False, beside=True)
    again, pool = (
        read_ledger(ledger.store, ledger.run, ledger.plan),
        ScriptedPool({"00000": ["killed_worker"]}, workers=2),
    )
    assert run(pool, again) == ALL - {"00000"}
    assert pool.runs[-1][1:] == ("00000", 1)


def test_quarantined_shards_stay_given_up(ledger: Ledger):
    run(ScriptedPool({"00003": ["raised"] * 9}), ledger)
    pool = ScriptedPool({})
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert run(pool, again, [footer(s) for s in ledger.plan.shards if s.id != "00003"]) == ALL - {"00003"}
    assert pool.runs == []


def test_two_drivers_keep_each_others_records(ledger: Ledger):
    shard, other = ledger.plan.shards[0], Ledger(ledger.store, ledger.run, ledger.plan)
    ledger.record(shard, Failure("raised", "first"), alone=False, beside=False)
    other.record(shard, Failure("raised", "second"), alone=False, beside=False)
    found = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.reason for a in found.attempts[shard.id]] == ["first", "second"]


def test_attempts_are_read_back_in_order_past_ten(ledger: Ledger):
    shard = ledger.plan.shards[0]
    for number in range(12):
        ledger.record(shard, Failure("storage" if number < 11 else "raised", str(number)), alone=False, beside=False)
    found = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.reason for a in found.attempts[shard.id]] == [str(n) for n in range(12)]
    assert found.uncharged_in_a_row(shard) == 0


def test_workers_without_work_are_let_go(ledger: Ledger):
    pool = ScriptedPool({}, workers=3)
    stored = [footer(s) for s in ledger.plan.shards[:5]]
    assert run(pool, ledger, stored) == ALL
    assert len(pool.ready) == 1


def test_the_tally_counts_stored_and_new_rows(ledger: Ledger):
    seen: list[Tally] = []
    stored = [footer(s) for s in ledger.plan.shards[:4]]
    Dispatch(ScriptedPool({"00004": ["raised"] * 9}), ledger.plan, ledger, stored, seen.append).run()
    last = seen[-1]
    assert (last.rows_planned, last.rows_done, last.rows_here, last.shards_done, last.quarantined) == (60, 50, 10, 5, 1)
    assert (last.attributed, last.converged, last.evaluations) == (50, 50, 400)
    assert last.eta_s is not None


Script = st.lists(st.sampled_from(["raised", "storage", *LOSSES]), max_size=8)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts=st.fixed_dictionaries(dict.fromkeys(sorted(ALL), Script)), workers=st.integers(1, 4))
def test_any_script_ends_with_every_shard_done_or_given_up(planned: Plan, tmp_path_factory: pytest.TempPathFactory,
                                                           scripts: dict[str, list[Event]], workers: int):  # fmt: skip
    """Drivers that stop as retryable are started again, as people do; each comes nearer to the end."""
    folder = Uri("file", str(tmp_path_factory.mktemp("run")))
    scripts = {shard: list(events) for shard, events in scripts.items()}
    done: dict[str, ShardFooter] = {}
    counted: list[str] = []
    for _ in range(20):
        ledger = read_ledger(Store(), folder, planned)
        pool = ScriptedPool(scripts, workers)
        driver = dispatch(pool, ledger, list(done.values()))
        before = set(done)
        try:
            driver.run()
        except TransientError:
            continue
        finally:
            done = dict(driver.footers)
            counted += sorted(set(done) - before)
        break
    else:
        pytest.fail("the run never ended")
    assert set(done) | set(ledger.quarantined) == ALL
    assert not set(done) & set(ledger.quarantined)
    assert sorted(counted) == sorted(done), "no shard was done twice"
