"""Drivers that die at every step of a run, and two drivers on one run, held to the rows of a run
without faults.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import load_plan
from integrand.service.runs.totals import write_block
from integrand.workers import failpoints
from integrand.workers.storage.store import Store
from tests.plugins.drivers import finish, fork, start
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import wait_until

SIGKILLED = -signal.SIGKILL
HOUSE = Path(__file__).parents[2]
FOLDING = "stats.written"
"""Reached by a thread of its own, in runs of many shards."""

OF_DRIVERS = [name for name in failpoints.NAMES if name != FOLDING]
POINTS = pytest.mark.parametrize("point", OF_DRIVERS)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """Two shards of CSV rows."""
    folder = JobFolder(tmp_path_factory.mktemp("complete"))
    folder.write_rows()
    folder.rows_of("rows.parquet").to_csv(folder.path / "rows.csv", index=False)
    folder.write_model()
    return folder


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """Three shards, the last of which cannot be read: it is given up."""
    folder = JobFolder(tmp_path_factory.mktemp("partial"))
    folder.write_rows(count=30, row_group_size=10, write_page_checksum=True)
    folder.flip_bit("rows.parquet", row_group=2)
    folder.write_model()
    return folder


CHANGES: dict[str, dict[str, Any]] = {
    "complete": {"source": {"uri": "rows.csv", "row_id": "id"}},
    "partial": {"compute": {"shard_rows": 10, "batch_rows": 16, "attempts": 2}},
}
ONLY_PARTIAL = ("attempt.recorded", "shard.quarantined")
BEFORE_SHARDS = OF_DRIVERS[: OF_DRIVERS.index("shard.begun") + 1]
BEFORE_SHARDS += [n for n in failpoints.NAMES if n.startswith("store.")]


@pytest.fixture(scope="module")
def undisturbed(complete: JobFolder, partial: JobFolder) -> dict[str, RunManifest]:
    runs = {"complete": complete, "partial": partial}
    return {
        kind: job.run(output={"uri": "undisturbed"}, **CHANGES[kind]) for kind, job in runs.items()
    }


def kind_of(point: str) -> str:
    return "partial" if point in ONLY_PARTIAL else "complete"


def test_every_point_is_reached_somewhere_and_every_point_reached_is_known():
    sources = [p for folder in ("workers", "service") for p in (HOUSE / folder).rglob("*.py")]
    reached = [name for p in sources for name in re.findall(r'\breach\("([^"]+)"\)', p.read_text())]
    assert sorted(reached) == sorted(failpoints.NAMES)


@pytest.mark.parametrize(
    ("kind", "point"),
    [(kind_of(point), point) for point in OF_DRIVERS] + [("partial", "store.half_written")],
)
def test_drivers_killed_at_a_point(
    request: pytest.FixtureRequest, undisturbed: dict[str, RunManifest], kind: str, point: str
):
    """The first driver dies when it is there for the first time, the next at its second, and so on
    until one finishes.
    """
    job: JobFolder = request.getfixturevalue(kind)
    for visit in count(1):
        code = finish(
            start(job, f"{point}=kill#{visit}", output={"uri": f"at-{point}"}, **CHANGES[kind])
        )
        if code != SIGKILLED:
            break
    assert (code, visit > 1) == (0, True)
    check_rows(job, undisturbed[kind], f"at-{point}")
    half_written = list((job.path / f"at-{point}" / undisturbed[kind].run_id).glob("_tmp/*"))
    assert kind == "partial" or half_written == [], "the last driver sweeps what the others left"


def test_a_shard_whose_driver_dies_is_not_to_blame(
    complete: JobFolder, undisturbed: dict[str, RunManifest]
):
    """However often: nothing is recorded against it."""
    out = {"uri": "blameless"}
    for _ in range(6):
        assert (
            finish(start(complete, "shard.computed=kill", output=out, **CHANGES["complete"]))
            == SIGKILLED
        )
    run = complete.path / "blameless" / undisturbed["complete"].run_id
    assert not list(run.glob("_attempts/*"))
    assert not list(run.glob("_quarantine/*"))
    assert finish(start(complete, output=out, **CHANGES["complete"])) == 0
    check_rows(complete, undisturbed["complete"], "blameless")


@POINTS
def test_two_drivers_that_leave_a_point_together(
    request: pytest.FixtureRequest, undisturbed: dict[str, RunManifest], tmp_path: Path, point: str
):
    """Both stand there at once, and neither loses or doubles a row of the other."""
    kind = kind_of(point)
    job: JobFolder = request.getfixturevalue(kind)
    # Both begin their first shard together: who came later would find done what the other did.
    places = [point] if point in BEFORE_SHARDS else ["shard.begun", point]
    drivers = [
        start(
            job,
            ";".join(
                f"{place}=wait:{tmp_path}/go-{place}@{tmp_path}/{place}-{name}" for place in places
            ),
            output={"uri": f"both-{point}"},
            **CHANGES[kind],
        )
        for name in ("one", "two")
    ]
    for place in places:
        wait_until(lambda: all((tmp_path / f"{place}-{name}").exists() for name in ("one", "two")))  # noqa: B023
        (tmp_path / f"go-{place}").touch()
    assert [finish(driver) for driver in drivers] == [0, 0]
    check_rows(job, undisturbed[kind], f"both-{point}")


@POINTS
def test_a_driver_that_stands_still_while_another_finishes(
    request: pytest.FixtureRequest, tmp_path: Path, point: str, undisturbed: dict[str, RunManifest]
):
    """It goes on afterwards, as one that was cut off does, and changes nothing."""
    kind = kind_of(point)
    job: JobFolder = request.getfixturevalue(kind)
    changes = {"output": {"uri": f"late-{point}"}, **CHANGES[kind]}
    late = start(job, f"{point}=wait:{tmp_path}/go@{tmp_path}/there", **changes)
    wait_until((tmp_path / "there").exists)
    assert finish(start(job, **changes)) == 0
    check_rows(job, undisturbed[kind], f"late-{point}")
    (tmp_path / "go").touch()
    assert finish(late) == 0
    check_rows(job, undisturbed[kind], f"late-{point}")


@dataclass(frozen=True)
class Folding:
    """Fold every shard of a run folder into a block, as the driver of a large run does."""

    run: Uri

    def __call__(self) -> None:
        store = Store()
        plan, digest = load_plan(store, self.run)
        write_block(RunFolder(store, self.run, plan, digest), [shard.id for shard in plan.shards])


@pytest.mark.parametrize("point", ["store.half_written", "store.written", "store.linked", FOLDING])
def test_a_driver_killed_while_it_folds_footers(
    complete: JobFolder, undisturbed: dict[str, RunManifest], point: str
):
    """The block is there or not, and the next driver reads the same run in either case."""
    out, changes = f"fold-{point}", CHANGES["complete"]
    assert finish(start(complete, "run.folded=kill", output={"uri": out}, **changes)) == SIGKILLED
    run = complete.run_uri(undisturbed["complete"], out)
    assert finish(fork(Folding(run), f"{point}=kill", complete.path / "fold.log")) == SIGKILLED
    complete.run(output={"uri": out}, **changes)
    check_rows(complete, undisturbed["complete"], out)
