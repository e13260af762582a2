"""The level of determinism that a run ends with, and why it is not `bitwise`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import verify_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import fold
from integrand.service.runs.totals import add_footers
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.numerics import versions
from integrand.workers.shards.output import results_of
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import Tampered

Change = dict[str, object]


@pytest.fixture
def manifest_of(tmp_path: Path, write_run: Callable) -> Callable[[Change], RunManifest]:
    """The manifest of a run of three shards, after a change to the footer of the second."""
    run = write_run(Store(), Uri("file", str(tmp_path)))

    def folded(change: Change) -> RunManifest:
        footers = run.footers | {"00001": run.footers["00001"].model_copy(update=change)}
        folder = RunFolder(Store(), run.uri, run.plan, run.plan_sha256)
        return fold(run.plan, run.plan_sha256, add_footers(folder, footers.values()), created="now")

    return folded


def test_a_bitwise_run_names_its_one_environment(manifest_of: Callable[[Change], RunManifest]):
    found = manifest_of({})
    assert (found.determinism, found.determinism_reasons) == ("bitwise", ())
    assert found.environments == ("torch 2.0 on an unrecorded processor",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"versions": {"torch": "3.0"}},
            (
                "its rows come from 2 environments: torch 2.0 on an unrecorded processor; torch 3.0"
                " on an unrecorded processor"
            ),
        ),
        (
            {"versions": {"torch": "2.0", "processor": "AVX2"}},
            (
                "its rows come from 2 environments: torch 2.0 on AVX2; torch 2.0 on "
                "an unrecorded processor"
            ),
        ),
        (
            {"determinism": "tolerance", "lowered": "halved its step batch to 8 rows"},
            "shard 00001 halved its step batch to 8 rows",
        ),
        ({"determinism": "tolerance"}, "shard 00001 says so"),
    ],
    ids=["torch builds", "processors", "a shard says why", "a shard of an older version"],
)
def test_why_a_run_is_not_bitwise(
    manifest_of: Callable[[Change], RunManifest], change: Change, reason: str
):
    found = manifest_of(change)
    assert (found.determinism, found.determinism_reasons) == ("tolerance", (reason,))


@pytest.mark.parametrize(
    ("halved", "same_build", "lowered"),
    [
        (None, True, None),
        (8, True, "halved its step batch to 8 rows on out-of-memory"),
        (None, False, "was planned with torch 2.0"),
        (8, False, "halved its step batch to 8 rows on out-of-memory; was planned with torch 2.0"),
    ],
)
def test_a_footer_says_what_lowered_its_shard(
    tmp_path: Path, write_run: Callable, halved: int | None, same_build: bool, lowered: str | None
):
    run = write_run(Store(), Uri("file", str(tmp_path)))
    rows = replace(results_of(run.plan, Tampered(Path(run.uri.path)).table(0)), halved=halved)
    footer = shard_footer(
        run.plan,
        run.plan_sha256,
        run.plan.shards[0],
        rows,
        seconds={},
        versions={},
        same_build=same_build,
    )
    assert footer.lowered == lowered
    assert footer.determinism == ("tolerance" if lowered else "bitwise")
    assert footer.batch_rows == (halved or run.plan.numerics.batch_rows)


def test_what_a_manifest_lists_does_not_grow_with_the_run(tmp_path: Path, write_run: Callable):
    run = write_run(Store(), Uri("file", str(tmp_path)))
    many = [replace(run.plan.shards[0], id=f"{n:05d}") for n in range(100)]
    plan = run.plan.model_copy(update={"shards": tuple(many)})
    low: Change = {"determinism": "tolerance", "lowered": "was slow"}
    footers = [
        run.footers["00000"].model_copy(update=low | {"shard": s.id, "versions": {"torch": s.id}})
        for s in many
    ]
    found = fold(
        plan,
        run.plan_sha256,
        add_footers(RunFolder(Store(), run.uri, plan, run.plan_sha256), footers),
        created="now",
    )
    assert len(found.environments) == 16
    assert found.determinism_reasons[1:3] == ("shard 00000 was slow", "shard 00001 was slow")
    assert found.determinism_reasons[-1] == "and 92 more shards"


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="needs a CPU with vector instructions",
)
def test_a_run_taken_up_on_another_cpu_is_level_tolerance_and_says_why(job: JobFolder):
    """ATEN_CPU_CAPABILITY makes torch choose the kernels of a lesser CPU; a process of its own
    takes seconds to start.
    """
    first = job.run()
    folder = job.path / "out" / first.run_id
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    command = [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        str(job.write_spec()),
        "--pool",
        "local",
        "--trust-model-code",
        job.module,
    ]
    subprocess.run(
        command,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        check=True,
        capture_output=True,
    )
    mixed = RunManifest.model_validate_json((folder / "_manifest.json").read_bytes())
    here = versions("cpu")["processor"]
    lesser = here.removesuffix(f" {torch.backends.cpu.get_cpu_capability()}")
    assert mixed.run_id == first.run_id
    assert (mixed.determinism, len(mixed.determinism_reasons)) == ("tolerance", 1)
    assert set(mixed.environments) == {
        f"torch {torch.__version__} on {name}" for name in (here, lesser)
    }
    found = verify_run(folder, sample=20, trusted=(job.module,))
    assert (found.findings, found.sampled, found.bitwise) == ((), 20, 10)


def test_rows_of_kernels_that_were_not_tried_are_not_called_bitwise(
    tmp_path: Path, write_run: Callable
):
    """A driver that died before its first shard, taken up where kernels round by place: one
    environment, not the planned.
    """
    run = write_run(Store(), Uri("file", str(tmp_path)))
    folder = RunFolder(Store(), run.uri, run.plan, run.plan_sha256)
    levels = {}
    for kernels in ("an unrecorded processor", "another"):
        plan = run.plan.model_copy(
            update={"numerics": run.plan.numerics.model_copy(update={"kernels": kernels})}
        )
        levels[kernels] = fold(
            plan, run.plan_sha256, add_footers(folder, run.footers.values()), created="now"
        )
    assert levels["an unrecorded processor"].determinism == "bitwise"
    assert levels["another"].determinism == "tolerance"
    assert "were not tried: it was planned on another" in levels["another"].determinism_reasons[0]


def cli(job: JobFolder, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`integrand run` in this process' place: kernels are chosen once in the life of one."""
    command = [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        str(job.path / "spec.yaml"),
        "--pool",
        "local",
        "--trust-model-code",
        job.module,
        *options,
    ]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def manifest_in(job: JobFolder) -> RunManifest:
    (place,) = (job.path / "out").glob("*/_manifest.json")
    return RunManifest.model_validate_json(place.read_bytes())


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="needs a CPU with vector instructions",
)
def test_a_run_that_requires_bits_is_not_taken_up_on_other_kernels(job: JobFolder):
    """As on another torch build: refused without --allow-mixed, which lowers the level."""
    job.write_spec(compute={"shard_rows": 10, "reproducible": "require"})
    assert cli(job).returncode == 0
    first = manifest_in(job)
    folder = job.path / "out" / first.run_id
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    refused = cli(job, ATEN_CPU_CAPABILITY="default")
    assert refused.returncode == 6
    assert "reproducible: require" in refused.stderr
    assert "--allow-mixed" in refused.stderr
    assert cli(job, "--allow-mixed", ATEN_CPU_CAPABILITY="default").returncode == 0
    mixed = manifest_in(job)
    assert (mixed.run_id, mixed.determinism, len(mixed.environments)) == (
        first.run_id,
        "tolerance",
        2,
    )


@pytest.mark.skipif(
    not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="needs MKL, and a CPU with AVX2",
)
def test_portable_bits_do_not_depend_on_what_the_machine_would_choose(job: JobFolder):
    """A run begun under one choice is taken up under another, and stays bitwise: this stands for
    two generations of x86.
    """
    job.write_spec(compute={"shard_rows": 10, "reproducible": "portable"})
    assert cli(job, MKL_CBWR="AUTO,STRICT").returncode == 0
    first = manifest_in(job)
    folder = job.path / "out" / first.run_id
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    done = cli(job, MKL_CBWR="", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    assert done.returncode == 0, done.stderr
    again = manifest_in(job)
    assert (again.run_id, again.determinism, again.digest) == (
        first.run_id,
        "bitwise",
        first.digest,
    )
    assert again.numerics is not None
    assert again.numerics.portable
    assert [name.split(" on ")[1] for name in again.environments] == [again.numerics.kernels]
