"""The same rows and footer, written again, are the same bytes: so is what lies outside of pages,
statistics and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import pyarrow as pa

from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked
from integrand.service.checks.rows.stored import ARROW_SCHEMA, ShardEvidence
from integrand.workers.data.decoding import open_parquet
from integrand.workers.shards.parquet import write_parquet

_WHAT = "bytes outside of pages"


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    stored = shard.stored
    if stored.footer.versions.get("pyarrow") != version("pyarrow"):
        yield Unchecked(_WHAT, "another version of pyarrow wrote them than is here")
        return
    own = [key for key in (FOOTER_KEY, CHECKSUM_KEY) if key in stored.metadata]
    metadata = {key: stored.metadata[key] for key in own}
    again = write_parquet(stored.table, metadata, stored.group_rows)
    same_schema = _arrow_schema(again) == stored.arrow_schema
    # no flipped bit does that, another zstd may
    if len(again) != len(shard.data) and same_schema:
        yield Unchecked(_WHAT, "another build of pyarrow wrote them than is here")
    elif again != shard.data:
        yield Finding(
            shard.where, "the bytes that its rows and its footer are written as", "others"
        )


CHECK = Check("encoding", "rows and footer, written again, are the same bytes", _remarks)


def _arrow_schema(data: bytes) -> str:
    parquet = open_parquet(pa.BufferReader(data))
    schema = parquet.metadata.metadata[ARROW_SCHEMA.encode()]
    return str(schema.decode())
