"""Shards that were given up, and records of failed attempts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integrand.schemas.errors import IntegrityError
from integrand.service.running.ledger import read_ledger
from integrand.service.runs.manifest import load_plan
from integrand.workers.storage.store import Store
from tests.plugins.tampering import Tampered, findings_text, verify_alone

QUARANTINE: dict[str, tuple[Callable[[Tampered], object], str]] = {
    "record gone": (
        lambda run: (run.path / "_quarantine" / "00001.json").unlink(),
        "manifest, quarantined",
    ),
    "other rows": (
        lambda run: run.edit("_quarantine/00001.json", lambda q: q.update(rows=7)),
        "planned shards and their rows",
    ),
    "no shard": (
        lambda run: run.edit("_quarantine/00001.json", lambda q: q.update(shard="00009")),
        "shard 00009 of 20 rows",
    ),
    "broken": (
        lambda run: (run.path / "_quarantine" / "00001.json").write_text("{"),
        "_quarantine/00001.json",
    ),
    "manifest edited": (
        lambda run: run.edit("_partial.json", lambda m: m.update(missing=[])),
        "manifest, missing",
    ),
}


@pytest.mark.parametrize("name", QUARANTINE)
def test_quarantine_that_does_not_agree_is_found(partial: Tampered, name: str):
    spoil, expected = QUARANTINE[name]
    spoil(partial)
    assert expected in findings_text(verify_alone(partial))


def test_an_attempt_that_cannot_be_read_is_found(run: Tampered):
    """It would end the next driver."""
    place = run.path / "_attempts" / "00000" / "0001.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b'{"shard": "00')
    assert str(place) in findings_text(verify_alone(run))
    with pytest.raises(IntegrityError, match=r"0001\.json"):
        read_ledger(Store(), run.uri, load_plan(Store(), run.uri)[0])
