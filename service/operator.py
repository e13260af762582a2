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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import SCHEMES
from integrand.workers.store import Access

DEFAULT_CONFIG = Path("/etc/integrand/config.toml")
_FIELDS = {"trust": {"modules": list, "locked": bool}, "storage": {"schemes": list, "buckets": list, "endpoint_url": str}}


@dataclass(frozen=True)
class Operator:
    """The operator's settings after flags were added."""

    trusted: tuple[str, ...] = ()
    access: Access = Access()


def load_operator(config: str | None, prefixes: Sequence[str]) -> Operator:
    """Settings of the file `config` (or the default one, if there is one), widened by `--trust-model-code` prefixes."""
    path = Path(config) if config else DEFAULT_CONFIG
    if not path.exists():
        if config:
            raise SpecError(f"operator config {path}", expected="a TOML file", seen="no such file")
        return Operator(tuple(prefixes))
    found = _parse(path)
    trust, storage = found.get("trust", {}), found.get("storage", {})
    modules = tuple(trust.get("modules", ()))
    beyond = [p for p in prefixes if p not in modules]
    if trust.get("locked") and beyond:
        raise SpecError(f"--trust-model-code {beyond[0]}", expected=f"a prefix that {path} allows",
                        seen=f"locked to: {', '.join(modules) or 'nothing'}")  # fmt: skip
    access = Access(endpoint_url=storage.get("endpoint_url"), schemes=tuple(storage.get("schemes", SCHEMES)),
                    buckets=tuple(storage.get("buckets", ())))  # fmt: skip
    return Operator(tuple(dict.fromkeys([*modules, *prefixes])), access)


def _parse(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"operator config {path}", expected="valid TOML", seen=str(error)) from error
    for section, fields in found.items():
        known = _FIELDS.get(section, {})
        for field, value in fields.items() if isinstance(fields, dict) else [("", None)]:
            if field not in known or not isinstance(value, known[field]):
                raise SpecError(f"operator config {path}: {section}.{field}", expected="one of "
                                + ", ".join(f"{s}.{f}" for s, fs in _FIELDS.items() for f in fs), seen=repr(value))  # fmt: skip
    return found
