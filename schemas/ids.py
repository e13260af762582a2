"""Content-derived identities: digests, run ids, shard ids and object names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

FORMAT_VERSION = 1
NUMERICS_VERSION = 3
"""Raised whenever a change of ours may change an attribution's bits: the same job is then another
run.
"""

FOOTER_KEY = "integrand.shard"
CHECKSUM_KEY = "integrand.shard.sha256"


def canonical_json(value: object) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, shortest round-trip floats."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_bytes(*chunks: bytes) -> str:
    """sha256 of length-prefixed chunks, in hex."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(len(chunk).to_bytes(8, "big"))
        state.update(chunk)
    return state.hexdigest()


def digest_json(value: object) -> str:
    return digest_bytes(canonical_json(value))


def shard_id(index: int) -> str:
    return f"{index:05d}"


def shard_object(shard: str) -> str:
    """Name of a shard's one object below the run folder. It never holds an attempt number."""
    return f"data/part-{shard}.parquet"


# 2**256 additions of row hashes (AdHash; Bellare & Micciancio 1997, §4): the sum is the same for
# any order and any cut into shards, so shard digests in footers fold into the run's digest without
# reading a row.
_MODULUS = 1 << 256


def add_digests(digests: Iterable[str]) -> str:
    """Order-independent digest of the union of disjoint row sets, from their own digests (hex)."""
    return _folded(int(digest, 16) for digest in digests)


def digest_rows(rows: Iterable[bytes]) -> str:
    """Logical digest of a set of canonical rows: equal for any order, as if they were sorted by
    identity.
    """
    return _folded(_number(row) for row in rows)


def _number(row: bytes) -> int:
    digest = hashlib.sha256(row).digest()
    return int.from_bytes(digest, "big")


def _folded(hashes: Iterable[int]) -> str:
    return f"{sum(hashes) % _MODULUS:064x}"
