"""Rows attributed again."""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from integrand.service.checks.verify import verify_run
from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import ROWS, Finished, Tampered, findings_text, verify_alone


def forge(run: Tampered, factor: float) -> None:
    """Attributions and f of every row times a factor, so that counts, sums, footers and manifest
    agree.
    """
    for shard in (0, 1):
        table = run.table(shard)
        for name in [n for n in table.column_names if n.startswith(("attr.", "f_", "gap"))]:
            scaled = pc.multiply(table[name], pa.scalar(factor, table[name].type))
            table = table.set_column(table.column_names.index(name), name, scaled)
        run.recount(shard, table)
    run.refold()


def test_rows_that_the_model_did_not_make_are_found_by_a_sample_alone(
    run: Tampered, finished: Finished
):
    forge(run, 2.0)
    assert verify_alone(run).holds
    found = verify_run(run.uri, sample=5, seed=1, trusted=(finished.job.module,))
    assert found.sampled == found.bitwise
    assert found.sampled <= len(found.findings) <= 2 * found.sampled
    assert "what the plan's model gives: ok" in findings_text(found)


def test_another_seed_draws_other_rows_and_the_same_seed_the_same(
    run: Tampered, finished: Finished
):
    forge(run, 1.0 + 1e-6)
    trusted = (finished.job.module,)
    drawn = [
        {f.where for f in verify_run(run.uri, sample=4, seed=s, trusted=trusted).findings}
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(("factor", "holds"), [(1.0 + 1e-6, True), (1.1, False)])
def test_rows_of_another_environment_are_compared_within_a_tolerance(
    run: Tampered, finished: Finished, factor: float, holds: bool
):
    forge(run, factor)
    for shard in (0, 1):
        footer = run.footer(shard)
        foreign = footer.model_copy(update={"versions": footer.versions | {"processor": "abacus"}})
        run.write(shard, run.table(shard), foreign)
    run.refold()
    found = verify_run(run.uri, sample=ROWS, trusted=(finished.job.module,))
    assert (found.holds, found.sampled, found.bitwise) == (holds, ROWS - 1, 0)


def test_without_trust_the_model_is_not_loaded_and_the_sample_not_called_fine(
    run: Tampered, finished: Finished
):
    module = finished.job.module
    sys.modules.pop(module, None)
    found = verify_run(run.uri)
    assert (found.findings, found.sampled, module in sys.modules) == ((), 0, False)
    assert f"model code `{module}`" in str(found.unchecked)
    assert verify_run(run.uri, trusted=(module,)).sampled
    assert module in sys.modules


@pytest.mark.parametrize("change", ["code", "gone", "rows"])
def test_a_model_or_a_source_that_is_not_the_planned_one_leaves_the_sample_unchecked(
    job: JobFolder, change: str
):
    manifest = job.run()
    if change == "code":
        job.write_model("return 2 * self.logits(x)")
    elif change == "gone":
        (job.path / f"{job.module}.py").unlink()
    else:
        job.write_rows(count=19)
    found = verify_run(job.run_uri(manifest), trusted=(job.module,))
    assert (found.findings, found.sampled) == ((), 0)
    assert "a sample of rows attributed again" in [u.what for u in found.unchecked]
    assert ("row ids against the source" in [u.what for u in found.unchecked]) == (change == "rows")
