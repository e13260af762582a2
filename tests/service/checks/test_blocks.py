"""Caches of footers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import load_plan
from integrand.service.runs.totals import write_block
from integrand.workers.storage.store import Store
from tests.plugins.tampering import Tampered, findings_text, replaced, verify_alone


def test_scratch_of_a_killed_writer_is_no_finding(run: Tampered):
    (run.path / "_stats").mkdir(exist_ok=True)
    (run.path / "_stats" / f"_{'0' * 32}.tmp").write_bytes(b"half a blo")
    assert verify_alone(run).holds


def test_a_block_of_footers_that_tells_otherwise_is_found(run: Tampered):
    plan, plan_sha256 = load_plan(Store(), run.uri)
    write_block(RunFolder(Store(), run.uri, plan, plan_sha256), ["00000", "00001"])
    assert verify_alone(run).holds
    (block,) = (run.path / "_stats").iterdir()
    text = block.read_text()
    block.write_text(text.replace('"rows_out": 40', '"rows_out": 41'))
    assert "a block of footers of this plan" in findings_text(verify_alone(run))
    forged = dump_block(text.replace('"rows_out": 40', '"rows_out": 41'), block.parent)
    block.unlink()
    assert [(f.where, f.expected) for f in verify_alone(run).findings] == [
        (str(forged), "what its members' footers amount to")
    ]
    run.recount(0, replaced(run.table(0), "attr.a", 7, 0.5))
    assert str(forged) not in findings_text(verify_alone(run)), (
        "a member changed: the block counts no more"
    )


def dump_block(text: str, folder: Path) -> Path:
    place = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    place.write_text(text)
    return place
