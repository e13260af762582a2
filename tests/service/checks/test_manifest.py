"""The manifest against the footers."""

from __future__ import annotations

import pytest

from tests.plugins.tampering import Tampered, findings_text, verify_alone


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows_in", 19),
        ("rows_out", 0),
        ("rows_planned", 21),
        ("statuses", {"ok": 40}),
        ("evaluations", 1),
        ("digest", "f" * 64),
        ("gap", {"p50": 1.0}),
        ("error", {"max": 0.5}),
        ("determinism", "tolerance"),
        ("shards_done", 1),
        ("run_id", "other"),
        ("plan_sha256", "0" * 64),
        ("environments", ["abacus"]),
        ("seconds", {"compute": 1.0}),
        ("missing", ["00001"]),
        ("complete", False),
        ("determinism_reasons", ["rain"]),
        ("shards_planned", 3),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 20 else "",
)
def test_an_edited_manifest_is_found(run: Tampered, field: str, value: object):
    run.edit("_manifest.json", lambda fields: fields.update({field: value}))
    assert [f.where for f in verify_alone(run).findings] == [f"{run.path} manifest, {field}"]


def test_a_broken_manifest_is_found(run: Tampered):
    (run.path / "_manifest.json").write_text("{}")
    assert "_manifest.json\n  expected: a RunManifest" in findings_text(verify_alone(run))
