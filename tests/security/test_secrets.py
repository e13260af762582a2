"""Credentials come from the environment and end there: no output, log, record or message holds
them.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import Family, end, start
from tests.plugins.proxy import Proxy, Rule
from tests.plugins.seaweed import ADMIN, S3Server

pytestmark = pytest.mark.s3
SECRET = ADMIN[1]
"""What the S3 server knows; the other canaries are made up for each test."""
LEAKY = """url = "https://bucket.example/key?X-Amz-Signature=CANARY&X-Amz-Security-Token=CANARY"
sent = " Authorization: AWS4 Credential=CANARY"
if (x[:, 0] == 1000).any(): raise RuntimeError("CUDA error: 403 for " + url + sent)
if (x[:, 0] == 1001).any(): raise RuntimeError("403 for " + url + " with password=CANARY")
return self.logits(x)"""


@pytest.fixture
def logs() -> Iterator[Path]:
    """Where Ray keeps its session; its sockets want a short path."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run(
    job: JobFolder, endpoint_url: str, place: Uri, *options: str, **environment: str
) -> tuple[int, str]:
    """`integrand run` with weights and output on S3: its exit code, and all that it said."""
    (job.path / "config.toml").write_text(f'[storage]\nendpoint_url = "{endpoint_url}"\n')
    spec = job.write_spec(
        output={"uri": str(place.child("out"))},
        compute={"shard_rows": 10, "batch_rows": 16, "workers": 1},
        model=job.model() | {"weights": str(place.child("weights.safetensors"))},
    )
    family = Family()
    variables = {
        "INTEGRAND_CONFIG": str(job.path / "config.toml"),
        "HOME": str(job.path),
        **environment,
    }
    try:
        return end(start(family, job, spec, *options, **variables), seconds=250)
    finally:
        family.left(within=30)
        family.kill()


def put_weights(job: JobFolder, store: Store, place: Uri) -> None:
    store.create(place.child("weights.safetensors"), job.write_weights().read_bytes())


def stored(store: Store, place: Uri) -> dict[str, str]:
    """Every object below a place as text: Parquet decoded, the rest as it is."""
    return {e.uri.name: text_of(e.uri.name, store.read(e.uri)) for e in store.list(place)}


def text_of(name: str, data: bytes) -> str:
    if not name.endswith(".parquet"):
        return data.decode(errors="replace")
    table = pq.read_table(io.BytesIO(data))
    return f"{table.to_pydict()} {table.schema.metadata}"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_on_ray_keeps_its_secrets_whatever_fails_in_it(
    job: JobFolder, s3_server: S3Server, s3_root: Uri, logs: Path
):
    """Two rows fail, one within its shard and one with it, both with messages that carry
    credentials of their own.

    Half a minute: a Ray of its own, so that its logs are those of this run, and the second row is
    searched for.
    """
    job.write_model(LEAKY.replace("CANARY", canary := f"canary{uuid4().hex}"))
    job.write_rows(count=40, marks=(35, 25))
    store = Store(s3_server.access)
    put_weights(job, store, s3_root)
    code, said = run(job, s3_server.endpoint_url, s3_root, RAY_TMPDIR=str(logs))
    assert code == 0, said
    found = stored(store, s3_root) | {"what was said": said}
    found |= {
        str(p.relative_to(logs)): p.read_text(errors="replace")
        for p in logs.rglob("*")
        if p.is_file()
    }
    told = [name for name, text in found.items() if "X-Amz-Signature=***" in text]
    assert {name.rpartition(".")[2] for name in told} >= {
        "json",
        "parquet",
    }, "attempts and output rows tell why"
    assert {"_plan.json", "_manifest.json"} <= set(found)
    assert any(name.endswith("raylet.out") for name in found)
    assert [name for name, text in found.items() if SECRET in text] == []
    assert [name for name, text in found.items() if canary in text and "/logs/" not in name] == []


def test_a_wrong_key_is_not_told(job: JobFolder, s3_server: S3Server, s3_root: Uri):
    put_weights(job, Store(s3_server.access), s3_root)
    canary = f"canary{uuid4().hex}"
    code, said = run(
        job, s3_server.endpoint_url, s3_root, "--pool", "local", AWS_SECRET_ACCESS_KEY=canary
    )
    assert code in (2, 4), said
    assert "s3://" in said
    assert canary not in said


def test_expired_credentials_are_not_told(
    job: JobFolder, s3_server: S3Server, s3_root: Uri, proxy: Proxy
):
    put_weights(job, Store(s3_server.access), s3_root)
    proxy.inject(Rule("expired", "PUT", "*/data/*", times=None))
    code, said = run(job, proxy.endpoint_url, s3_root, "--pool", "local")
    assert code == 4, said
    assert "renew" in said
    found = stored(Store(s3_server.access), s3_root) | {"what was said": said}
    assert "_plan.json" in found
    assert [name for name, text in found.items() if SECRET in text] == []


def test_the_search_would_find_one(job: JobFolder, s3_server: S3Server, s3_root: Uri):
    store = Store(s3_server.access)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    place = job.write_rows(note=[SECRET] * 20)
    store.create(s3_root.child("rows.parquet"), place.read_bytes())
    assert SECRET in stored(store, s3_root)["rows.parquet"]
