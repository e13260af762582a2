"""How the operator allows trusted module prefixes, places, the S3 endpoint, memory and open
clusters.

Read once by the CLI from a TOML file, never from a spec:

    [trust]
    modules = ["my_models"]
    locked = true          # flags cannot widen what this file allows
    [storage]
    schemes = ["file", "s3"]
    buckets = ["audits"]
    endpoint_url = "https://s3.example"
    decoded_bytes = 2_147_483_648    # what the columns of one shard may decode to
    [ray]
    allow_unauthenticated = false
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Scheme
from integrand.service.operator import Operator
from integrand.workers.storage.store import Access

DEFAULT_CONFIG = Path("/etc/integrand/config.toml")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Trust(_Section):
    modules: list[str] = []
    locked: bool = False


class _Storage(_Section):
    schemes: list[Scheme] = list(get_args(Scheme))
    buckets: list[str] = []
    endpoint_url: str | None = Field(None, pattern=r"^https?://[^\s@]+$")
    decoded_bytes: PositiveInt = Access.decoded_bytes


class _Ray(_Section):
    allow_unauthenticated: bool = False


class _Config(_Section):
    trust: _Trust = _Trust()
    storage: _Storage = _Storage()
    ray: _Ray = _Ray()


def load_operator(
    config: str | None, prefixes: Sequence[str], *, allow_unauthenticated_ray: bool = False
) -> Operator:
    """Settings of the file `config` (or the default one, if there is one), widened by flags unless
    it is locked.
    """
    path = Path(config) if config else DEFAULT_CONFIG
    if not path.exists():
        if config:
            raise SpecError(f"operator config {path}", expected="a TOML file", seen="no such file")
        return Operator(tuple(prefixes), allow_unauthenticated_ray=allow_unauthenticated_ray)
    found = _parse(path)
    beyond = [p for p in prefixes if p not in found.trust.modules]
    if found.trust.locked and beyond:
        raise SpecError(
            f"--trust-model-code {beyond[0]}",
            expected=f"a prefix that {path} allows",
            seen=f"locked to: {', '.join(found.trust.modules) or 'nothing'}",
        )
    if found.trust.locked and allow_unauthenticated_ray and not found.ray.allow_unauthenticated:
        raise SpecError(
            "--allow-unauthenticated-ray",
            expected=f"what {path} allows",
            seen="locked without it",
            next_step="use a cluster with token authentication",
        )
    access = Access(
        endpoint_url=found.storage.endpoint_url,
        schemes=tuple(found.storage.schemes),
        buckets=tuple(found.storage.buckets),
        decoded_bytes=found.storage.decoded_bytes,
    )
    return Operator(
        tuple(dict.fromkeys([*found.trust.modules, *prefixes])),
        access,
        found.ray.allow_unauthenticated or allow_unauthenticated_ray,
    )


def _parse(path: Path) -> _Config:
    where = f"operator config {path}"
    try:
        return _Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(where, expected="valid TOML", seen=str(error)) from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)
        ]
        raise SpecError(
            where,
            expected=(
                "[trust] modules, locked; [storage] schemes, buckets, endpoint_url, decoded_bytes; "
                "[ray] allow_unauthenticated"
            ),
            seen="; ".join(problems),
        ) from None
