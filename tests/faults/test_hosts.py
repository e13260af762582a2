"""Hosts that are not well: disks that are full, and clocks that are wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from integrand.schemas.errors import TransientError
from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.workers.failpoints import VARIABLE
from tests.plugins import drivers
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import Family, end, start, wait_until
from tests.plugins.seaweed import S3Server

SIZES: dict[str, Any] = {"compute": {"shard_rows": 100, "batch_rows": 64}}
AHEAD, BEHIND = "+2h", "-2h"


@pytest.fixture
def undisturbed(job: JobFolder) -> RunManifest:
    job.write_rows(count=1000)
    return job.run(output={"uri": "undisturbed"}, **SIZES)


@contextmanager
def small(place: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place.mkdir()
    if os.geteuid() != 0 or subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    ):
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(
            "needs root that may mount a tmpfs"
        )
    yield place
    subprocess.check_call(["umount", "--lazy", str(place)])


@pytest.fixture
def disk(job: JobFolder) -> Iterator[Path]:
    """Where the job writes."""
    with small(job.path / "out") as place:
        yield place


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where Ray writes; the paths of its sockets have 107 characters at most."""
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder,
        small(Path(folder, "s")) as place,
    ):
        yield place


def fill(place: Path) -> Path:
    """Write until nothing more goes in."""
    filler = place / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(place).free == 0
    return filler


@pytest.mark.needs_tool("mount")
def test_a_full_disk_ends_the_run_as_retryable_and_space_completes_it(
    job: JobFolder, undisturbed: RunManifest, disk: Path
):
    filler = disk / "filler"
    needed = sum(p.stat().st_size for p in (job.path / "undisturbed").rglob("*") if p.is_file())
    filler.write_bytes(bytes((8 << 20) - needed * 2 // 3))  # a part of the shards finds room
    with pytest.raises(TransientError, match=r"free space") as ended:
        job.run(**SIZES)
    assert ended.value.exit_code == 4
    run = disk / undisturbed.run_id
    written = len(list((run / "data").glob("*")))
    assert 0 < written < 10
    assert not list(disk.rglob("*.tmp")), "nothing half written is left to fill the disk"
    whole = job.rows(undisturbed)
    assert (
        whole["row_id"].tolist()
        == job.rows(undisturbed, "undisturbed")["row_id"].tolist()[: 100 * written]
    )
    filler.unlink()
    job.run(**SIZES)
    check_rows(job, undisturbed)


@pytest.fixture
def family() -> Iterator[Family]:
    found = Family()
    yield found
    found.kill()


@pytest.mark.ray
@pytest.mark.needs_tool("mount")
def test_ray_on_a_disk_that_fills_up(
    job: JobFolder, family: Family, undisturbed: RunManifest, scratch: Path, tmp_path: Path
):
    """Where it cannot start, which it takes 30 s to see, that is said; a run under way needs no
    space there.
    """
    environment = {
        "RAY_TMPDIR": str(scratch),
        VARIABLE: f"shard.computed=wait:{tmp_path}/go@{tmp_path}/there",
    }
    spec = job.write_spec(**SIZES)
    filler = fill(scratch)
    code, output = end(start(family, job, spec, **environment))
    assert (code, "Traceback" in output) == (4, False), output
    assert "memory and space" in output
    assert family.left(within=30) == {}
    filler.unlink()
    driver = start(family, job, spec, **environment)
    wait_until((tmp_path / "there").exists)
    fill(scratch)
    (tmp_path / "go").touch()
    assert end(driver)[0] == 0
    check_rows(job, undisturbed)


@pytest.mark.needs_tool("faketime")
@pytest.mark.parametrize("offset", [AHEAD, BEHIND])
def test_a_run_goes_on_under_another_clock(
    job: JobFolder, family: Family, undisturbed: RunManifest, offset: str
):
    """Begun under one clock, killed, taken up under another: nothing is decided by the time of day
    of two hosts.
    """
    wrong = ("faketime", "-f", offset)
    assert drivers.finish(drivers.start(job, "shard.settled=kill", **SIZES)) == -signal.SIGKILL
    dying = start(
        family,
        job,
        job.write_spec(**SIZES),
        "--pool",
        "local",
        before=wrong,
        **{VARIABLE: "shard.settled=kill#3"},
    )
    assert "Caught Killed" in end(dying)[1], "as faketime tells that its child was"
    objects = sorted((job.path / "out" / undisturbed.run_id / "data").glob("*"))
    assert len(objects) == 4, "one shard under the right clock, three under the wrong one"
    job.run(**SIZES)
    check_rows(job, undisturbed)


@pytest.mark.s3
@pytest.mark.needs_tool("faketime")
def test_a_store_that_refuses_a_wrong_clock_is_told_clearly(s3_server: S3Server, s3_root: Uri):
    """S3 refuses what was signed more than a quarter of an hour ago or ahead."""
    code = (
        "from integrand.workers.storage.store import Access, Store;"
        " "
        f"Store(Access(endpoint_url={s3_server.endpoint_url!r})).create(Store().parse({str(s3_root.child('object'))!r}),"
        " b'x')"
    )
    command = ["faketime", "-f", AHEAD, sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    assert "clock" in found.stderr.splitlines()[-1] + found.stderr.splitlines()[-2], found.stderr[
        -2000:
    ]
    assert "RequestTimeTooSkewed" in found.stderr
