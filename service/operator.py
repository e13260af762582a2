"""What the operator allows: trusted module prefixes, storage schemes, buckets and the S3 endpoint.

Read once by the CLI from a TOML file, never from a spec:

    [trust]
    modules = ["my_models"]
    locked = true          # flags cannot widen what this file allows
    [storage]
    schemes = ["file", "s3"]
    buckets = ["audits"]
    endpoint_url = "https://s3.example"
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Scheme
from integrand.workers.store import Access

DEFAULT_CONFIG = Path("/etc/integrand/config.toml")


@dataclass(frozen=True)
class Operator:
    """The operator's settings after flags were added."""

    trusted: tuple[str, ...] = ()
    access: Access = field(default_factory=Access)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Trust(_Section):
    modules: list[str] = []
    locked: bool = False


class _Storage(_Section):
    schemes: list[Scheme] = list(get_args(Scheme))
    buckets: list[str] = []
    endpoint_url: str | None = None


class _Config(_Section):
    trust: _Trust = _Trust()
    storage: _Storage = _Storage()


def load_operator(config: str | None, prefixes: Sequence[str]) -> Operator:
    """Settings of the file `config` (or the default one, if there is one), widened by `--trust-model-code` prefixes."""
    path = Path(config) if config else DEFAULT_CONFIG
    if not path.exists():
        if config:
            raise SpecError(f"operator config {path}", expected="a TOML file", seen="no such file")
        return Operator(tuple(prefixes))
    found = _parse(path)
    beyond = [p for p in prefixes if p not in found.trust.modules]
    if found.trust.locked and beyond:
        raise SpecError(f"--trust-model-code {beyond[0]}", expected=f"a prefix that {path} allows",
                        seen=f"locked to: {', '.join(found.trust.modules) or 'nothing'}")  # fmt: skip
    access = Access(endpoint_url=found.storage.endpoint_url, schemes=tuple(found.storage.schemes),
                    buckets=tuple(found.storage.buckets))  # fmt: skip
    return Operator(tuple(dict.fromkeys([*found.trust.modules, *prefixes])), access)


def _parse(path: Path) -> _Config:
    where = f"operator config {path}"
    try:
        return _Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(where, expected="valid TOML", seen=str(error)) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise SpecError(where, expected="[trust] modules, locked and [storage] schemes, buckets, endpoint_url",
                        seen="; ".join(problems)) from None  # fmt: skip
