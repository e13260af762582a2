"""2,000 shards of the run that `make load` makes of 100,000, on real actors, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.load import (
    HELD_BACK,
    MOST_GROWTH,
    MOST_IN_FLIGHT,
    MOST_OVERHEAD_S,
    MOST_PLANNING_S,
    ROWS,
    Load,
    check,
    drive,
    look,
    prepare,
)

SHARDS = 2000
SLACK = 10
"""Of bounds on time: this machine may be busy."""


@pytest.mark.ray
def test_a_driver_of_many_shards_is_quick_and_does_not_grow(local_ray: str, tmp_path: Path):
    """About 15 s, half of them Ray's start: enough shards for two blocks of footers."""
    load = Load(tmp_path, SHARDS, workers=2, address=local_ray)
    prepare(load)
    first = drive(load, SHARDS - HELD_BACK)
    assert not first.complete
    assert first.most_in_flight <= MOST_IN_FLIGHT
    assert first.growth <= MOST_GROWTH
    assert first.spent.waiting / first.spent.shards <= SLACK * MOST_OVERHEAD_S
    assert first.cpu_s / first.shards <= SLACK * MOST_OVERHEAD_S
    assert len(list((tmp_path / "run" / "_stats").iterdir())) == 1, (
        "1,000 of the 1,900 shards are in a block"
    )
    rows, _ = look(load)
    assert ROWS * (SHARDS - HELD_BACK) <= rows < ROWS * SHARDS
    second = drive(load)
    assert (second.complete, second.shards) == (
        True,
        SHARDS - rows // ROWS,
    ), "only what was missing was run"
    assert second.planning_s <= MOST_PLANNING_S
    check(load)
