"""What every stored record is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything stored: frozen; unknown fields of newer writers are ignored, never an
    error.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())


def dump(record: Record) -> bytes:
    """A record as UTF-8 JSON, ended by a newline."""
    return record.model_dump_json(indent=1).encode() + b"\n"
