"""The dispatch loop against a scripted pool: what is charged, who is tried alone, what ends
a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import Plan, ShardFooter
from integrand.schemas.specs.job import Limits
from integrand.schemas.tasks import Trial
from integrand.schemas.uris import Uri
from integrand.service.pools.base import Outcome
from integrand.service.pools.failures import Failure, FailureKind
from integrand.service.progress import Tally
from integrand.service.running.kinds import ATTRIBUTION
from integrand.service.running.ledger import Ledger, read_ledger
from integrand.service.running.runner import UNCHARGED_IN_A_ROW, Dispatch
from integrand.service.runs.totals import Committed, merge, stats_of
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder
from tests.plugins.scripted import DONE, Event, ScriptedPool, footer

LOSSES = ("killed_worker", "stalled", "preempted", "lost", "memory")


def test_the_clock_starts_with_the_first_shard_not_with_the_workers(ledger: Ledger) -> None:
    dispatch = Dispatch(
        ATTRIBUTION, ScriptedPool({}), ledger.plan, ledger, Committed(), lambda tally: None
    )
    assert (dispatch.tally().seconds, dispatch.tally().eta_s) == (0.0, None)
    dispatch.run()
    assert dispatch.tally().seconds > 0


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
    changed = spec.model_copy(
        update={
            "compute": spec.compute.model_copy(update=compute),
            "limits": Limits(max_quarantined=most),
        }
    )
    return Ledger(ledger.store, ledger.run, ledger.plan.model_copy(update={"spec": changed}))


def dispatch(pool: ScriptedPool, ledger: Ledger, stored: Sequence[ShardFooter] = ()) -> Dispatch:
    return Dispatch(ATTRIBUTION, pool, ledger.plan, ledger, committed(stored), lambda tally: None)


def committed(footers: Sequence[ShardFooter]) -> Committed:
    return Committed({f.shard for f in footers}, merge(map(stats_of, footers)))


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
        ("raised", True, True),
        ("killed_worker", True, True),
        ("stalled", True, True),
        ("memory", False, True),
        ("memory", True, False),
        ("preempted", False, False),
        ("lost", False, False),
        ("storage", False, False),
    ],
)
def test_what_is_charged(ledger: Ledger, event: FailureKind, beside: bool, charged: bool):
    shard = ledger.plan.shards[0]
    found = ledger.record(
        shard, Failure(event, "why", "Traceback: x", "node-1"), alone=False, accompanied=beside
    )
    assert (found.charged, found.outcome, found.reason, found.detail, found.node) == (
        charged,
        event,
        "why",
        "Traceback: x",
        "node-1",
    )


def test_a_shard_that_raises_even_when_read_is_given_up_after_its_attempts(ledger: Ledger):
    pool = ScriptedPool({"00002": ["raised"] * 9}, workers=2)
    assert run(pool, ledger) == ALL - {"00002"}
    assert [a.rows for a in ledger.attempts["00002"]] == [None, None, None, (0, 0)]
    given_up = ledger.quarantined["00002"]
    assert (given_up.attempts, given_up.rows, given_up.reason) == (4, 10, "scripted raised")
    assert (given_up.detail, given_up.node) == ("Traceback: x", "node-1")


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_the_specs(ledger: Ledger, attempts: int):
    pool = ScriptedPool({"00002": ["raised"] * 9})
    run(pool, under(ledger, attempts=attempts))
    assert [shard for _, shard, _ in pool.runs].count("00002") == attempts + 1, "and once only read"


def test_a_shard_that_fails_at_first_is_done_in_the_end(ledger: Ledger):
    pool = ScriptedPool(
        {"00000": ["raised", "storage", "raised"], "00003": ["preempted", "killed_worker"]}
    )
    assert run(pool, ledger) == ALL
    assert ledger.quarantined == {}


@pytest.mark.parametrize("event", ["killed_worker", "stalled"])
def test_a_shard_lost_twice_is_tried_alone_and_then_condemned(ledger: Ledger, event: str):
    pool = ScriptedPool({"00001": [event] * 9}, workers=3)
    assert run(pool, ledger) == ALL - {"00001"}
    attempts = ledger.attempts["00001"]
    assert [(a.alone, a.rows) for a in attempts] == [
        (False, None),
        (False, None),
        (True, None),
        (True, (0, 0)),
    ]
    lone = [i for i, (_, shard, _) in enumerate(pool.runs) if shard == "00001"][-2]
    worker, _, in_flight = pool.runs[lone]
    assert (worker in pool.replaced, in_flight) == (True, 1)
    assert lone == len(pool.runs) - 2, "nothing was given out beside it, and all others came first"


def test_a_shard_that_survives_alone_is_innocent(ledger: Ledger):
    pool = ScriptedPool({"00001": ["killed_worker", "stalled"]}, workers=2)
    assert run(pool, ledger) == ALL
    assert (len(ledger.attempts["00001"]), ledger.quarantined) == (2, {})


def test_two_suspects_are_tried_one_after_the_other(ledger: Ledger):
    pool = ScriptedPool({"00001": ["killed_worker"] * 2, "00004": ["stalled"] * 4}, workers=3)
    assert run(pool, ledger) == ALL - {"00004"}
    assert {shard: in_flight for _, shard, in_flight in pool.runs[-3:]} == {"00001": 1, "00004": 1}


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


def test_rows_that_kill_are_found_and_the_shard_is_done_without_them(ledger: Ledger):
    pool = ScriptedPool({}, workers=2, killers={"00001": {4, 9}, "00003": {0}})
    assert run(pool, ledger) == ALL
    assert ledger.quarantined == {}
    whole = {
        s.id: [c.row for c in s.culprits]
        for s in pool.shards
        if isinstance(s, Trial) and s.only is None
    }
    assert whole == {"00001": [4, 9], "00003": [0]}
    searched = [
        in_flight
        for (_, _, in_flight), s in zip(pool.runs, pool.shards, strict=True)
        if isinstance(s, Trial)
    ]
    assert set(searched) == {1}, "nothing runs beside a search"
    assert pool.replaced.count(0) + pool.replaced.count(1) == 2, (
        "a trial needs no worker of its own"
    )


def test_a_search_outlives_its_driver(ledger: Ledger):
    killers = {"00001": {4, 9}}
    with pytest.raises(KeyboardInterrupt):
        interrupted(ScriptedPool({}, killers=killers), ledger, after=5)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert again.attempts == ledger.attempts
    known = {a.rows for a in again.attempts["00001"]} - {None}
    assert known
    pool = ScriptedPool({}, killers=killers)
    stored = [footer(s) for s in ledger.plan.shards if s.id != "00001"]
    assert run(pool, again, stored) == ALL
    assert not known & {s.only for s in pool.shards if isinstance(s, Trial)}, (
        "no range is lost twice"
    )
    assert [
        c.row for s in pool.shards if isinstance(s, Trial) and s.only is None for c in s.culprits
    ] == [4, 9]


def test_a_shard_that_is_lost_without_its_culprits_is_given_up(ledger: Ledger):
    """Sound when read and in halves, lost as a whole: memory that no single row takes, say."""
    pool = ScriptedPool(
        {"00001": ["killed_worker"] * 3 + [DONE] * 3 + ["killed_worker"]}, workers=2
    )
    assert run(pool, ledger) == ALL - {"00001"}
    assert [a.rows for a in ledger.attempts["00001"]] == [None] * 4
    assert list(ledger.quarantined) == ["00001"]


def test_a_search_that_is_preempted_goes_on(ledger: Ledger):
    pool = ScriptedPool(
        {"00001": ["killed_worker"] * 3 + [DONE, "preempted", "storage"]}, killers={"00001": {4}}
    )
    assert run(pool, ledger) == ALL
    assert [
        c.row for s in pool.shards if isinstance(s, Trial) and s.only is None for c in s.culprits
    ] == [4]


def test_a_released_shard_starts_anew_and_keeps_its_history(ledger: Ledger):
    run(ScriptedPool({"00003": ["raised"] * 9}), ledger)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    again.release("00003")
    released = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert released.quarantined == {}
    assert [a.outcome for a in released.attempts["00003"]] == ["raised"] * 4 + ["released"]
    shard = next(s for s in ledger.plan.shards if s.id == "00003")
    assert not released.suspect(shard)
    pool = ScriptedPool({"00003": ["raised", "raised"]})
    assert run(pool, released, [footer(s) for s in ledger.plan.shards if s.id != "00003"]) == ALL


def test_memory_that_takes_two_workers_at_once_is_charged_to_neither(ledger: Ledger):
    class Together(ScriptedPool):
        def wait(self, timeout_s: float) -> list[Outcome]:
            return [
                outcome
                for _ in range(max(1, len(self.busy)))
                for outcome in super(Together, self).wait(timeout_s)
            ]

    pool = Together({"00000": ["memory"], "00001": ["memory"]}, workers=2)
    assert run(pool, ledger) == ALL
    assert [(a.charged, a.alone) for known in ledger.attempts.values() for a in known] == [
        (False, False)
    ] * 2


def test_faults_that_an_earlier_driver_saw_do_not_end_the_next_one(ledger: Ledger):
    with pytest.raises(TransientError, match="faults in a row"):
        run(ScriptedPool({"00001": ["preempted"] * 9}), ledger)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert run(ScriptedPool({"00001": ["preempted"] * (UNCHARGED_IN_A_ROW - 1)}), again) == ALL


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


def test_a_fresh_worker_is_given_the_place_of_one_that_waits(ledger: Ledger):
    """There is room for one: what shall run alone comes up once the other has left."""

    class OneRoom(ScriptedPool):
        def wait(self, timeout_s: float) -> list[Outcome]:
            if not self.busy and self.starting:
                assert not self.ready, "two workers wait for each other"
            return super().wait(timeout_s)

    pool = OneRoom({"00000": ["killed_worker"] * 2}, workers=2, killers={"00000": {3}})
    assert run(pool, ledger) == ALL
    assert len(pool.ready) == 1


def test_a_run_above_its_limit_is_not_taken_up_again(ledger: Ledger):
    run(ScriptedPool({"00000": ["raised"] * 9}), ledger)
    stopped = under(ledger, max_quarantined=0)
    stopped.quarantined = ledger.quarantined
    pool = ScriptedPool({})
    run(pool, stopped)
    assert pool.runs == []


def test_no_limit_lets_the_others_finish(ledger: Ledger):
    assert run(ScriptedPool({shard: ["raised"] * 9 for shard in sorted(ALL)[:5]}), ledger) == {
        "00005"
    }


def test_attempts_outlive_the_driver(ledger: Ledger):
    with pytest.raises(KeyboardInterrupt):
        interrupted(ScriptedPool({"00000": ["raised", "raised"]}), ledger, after=2)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.outcome for a in again.attempts["00000"]] == ["raised", "raised"]
    pool = ScriptedPool({"00000": ["raised"] * 9})
    assert run(pool, again) == ALL - {"00000"}
    assert [shard for _, shard, _ in pool.runs].count("00000") == 2, "whole, and only read"
    assert read_ledger(ledger.store, ledger.run, ledger.plan).quarantined == again.quarantined


def interrupted(pool: ScriptedPool, ledger: Ledger, after: int) -> None:
    def stop(tally: Tally) -> None:
        if sum(map(len, ledger.attempts.values())) >= after:
            raise KeyboardInterrupt

    Dispatch(ATTRIBUTION, pool, ledger.plan, ledger, Committed(), stop).run()


def test_a_suspect_of_an_earlier_driver_is_tried_alone_after_the_others(ledger: Ledger):
    shard = ledger.plan.shards[0]
    for _ in range(2):
        ledger.record(shard, Failure("killed_worker", "died"), alone=False, accompanied=True)
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    pool = ScriptedPool({"00000": ["killed_worker"] * 2}, workers=2)
    assert run(pool, again) == ALL - {"00000"}
    assert [one[1:] for one in pool.runs[-2:]] == [("00000", 1)] * 2


def test_quarantined_shards_stay_given_up(ledger: Ledger):
    run(ScriptedPool({"00003": ["raised"] * 9}), ledger)
    pool = ScriptedPool({})
    again = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert run(pool, again, [footer(s) for s in ledger.plan.shards if s.id != "00003"]) == ALL - {
        "00003"
    }
    assert pool.runs == []


def test_two_drivers_keep_each_others_records(ledger: Ledger):
    shard, other = ledger.plan.shards[0], Ledger(ledger.store, ledger.run, ledger.plan)
    ledger.record(shard, Failure("raised", "first"), alone=False, accompanied=False)
    other.record(shard, Failure("raised", "second"), alone=False, accompanied=False)
    found = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.reason for a in found.attempts[shard.id]] == ["first", "second"]


def test_attempts_are_read_back_in_order_past_ten(ledger: Ledger):
    shard = ledger.plan.shards[0]
    for number in range(12):
        ledger.record(
            shard,
            Failure("storage" if number < 11 else "raised", str(number)),
            alone=False,
            accompanied=False,
        )
    found = read_ledger(ledger.store, ledger.run, ledger.plan)
    assert [a.reason for a in found.attempts[shard.id]] == [str(n) for n in range(12)]
    assert [a.charged for a in found.attempts[shard.id]] == [False] * 11 + [True]


def test_workers_without_work_are_let_go(ledger: Ledger):
    pool = ScriptedPool({}, workers=3)
    stored = [footer(s) for s in ledger.plan.shards[:5]]
    assert run(pool, ledger, stored) == ALL
    assert len(pool.ready) == 1


def test_the_tally_counts_stored_and_new_rows(ledger: Ledger):
    seen: list[Tally] = []
    stored = committed([footer(s) for s in ledger.plan.shards[:4]])
    told: list[str] = []
    Dispatch(
        ATTRIBUTION,
        ScriptedPool({"00004": ["raised"] * 9}),
        ledger.plan,
        ledger,
        stored,
        seen.append,
        told.append,
    ).run()
    last = seen[-1]
    assert told == ["00005"], "only what this driver saw committed"
    assert (
        last.rows_planned,
        last.rows_done,
        last.rows_here,
        last.shards_done,
        last.quarantined,
    ) == (60, 50, 10, 5, 1)
    assert last.highlights == ("8.0 evaluations/row", "converged 100.0%")
    assert last.eta_s is not None


Script = st.lists(st.sampled_from(["raised", "storage", *LOSSES]), max_size=8)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(scripts=st.fixed_dictionaries(dict.fromkeys(sorted(ALL), Script)), workers=st.integers(1, 4))
def test_any_script_ends_with_every_shard_done_or_given_up(
    planned: Plan,
    tmp_path_factory: pytest.TempPathFactory,
    scripts: dict[str, list[Event]],
    workers: int,
):
    """Drivers that stop as retryable are started again, as people do; each comes nearer to
    the end.
    """
    folder = Uri("file", str(tmp_path_factory.mktemp("run")))
    scripts = {shard: list(events) for shard, events in scripts.items()}
    done: set[str] = set()
    counted: list[str] = []
    for _ in range(20):
        ledger = read_ledger(Store(), folder, planned)
        pool = ScriptedPool(scripts, workers)
        stored = committed([footer(s) for s in planned.shards if s.id in done])
        driver = Dispatch(
            ATTRIBUTION, pool, planned, ledger, stored, lambda tally: None, counted.append
        )
        try:
            driver.run()
        except TransientError:
            continue
        finally:
            done = driver.done
        break
    else:
        pytest.fail("the run never ended")
    assert done | set(ledger.quarantined) == ALL
    assert not done & set(ledger.quarantined)
    assert (driver.stats.shards, driver.stats.rows_in) == (len(done), 10 * len(done))
    assert sorted(counted) == sorted(done), "no shard was done twice"
