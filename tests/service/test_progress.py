"""What a user sees while a job runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from integrand.service import progress
from integrand.service.progress import Tally, describe, watch

TALLY = Tally(
    shards_planned=10,
    rows_planned=100,
    shards_done=2,
    rows_done=20,
    rows_here=20,
    quarantined=0,
    seconds=4.0,
    highlights=("8.0 evaluations/row", "converged 95.0%"),
)


def test_a_line_says_speed_accuracy_and_time_left():
    assert (
        describe(TALLY) == "20/100 rows, 5 rows/s, 8.0 evaluations/row, converged 95.0%, ETA 16 s"
    )


def test_quarantine_and_a_search_are_told():
    told = describe(replace(TALLY, quarantined=1, searched="00003"))
    assert "1 shards quarantined" in told
    assert "trying shard 00003 in parts" in told


def test_plain_output_prints_news_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    searching = replace(TALLY, searched="00003")
    with watch(Console(width=400)) as show:
        for tally in (TALLY, TALLY, searching, searching, TALLY, replace(TALLY, shards_done=10)):
            show(tally)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" shards")[0] for line in lines] == ["2/10", "2/10", "10/10"]
    assert ["in parts" in line for line in lines] == [False, True, False]
