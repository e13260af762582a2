"""Counters say at their fields how they add up."""

from __future__ import annotations

from typing import Annotated

import pytest

from integrand.schemas.counters import Adds, add_by_key, close, counters, first, largest
from integrand.schemas.record import Record
from integrand.schemas.records import RunManifest, ShardFooter
from integrand.schemas.stats import COUNTERS, Stats


def test_counts_are_added_by_key():
    assert add_by_key([{"ok": 1, "failed": 2}, {}, {"ok": 3}]) == {"failed": 2, "ok": 4}
    assert add_by_key([]) == {}


def test_the_largest_of_none_is_none():
    assert (largest([]), largest([None, 2.0, None, 1.0])) == (None, 2.0)


def test_names_are_kept_once_up_to_a_number():
    assert first(2)([("c", "a"), (), ("b", "a")]) == ("a", "b")


@pytest.mark.parametrize(
    ("other", "same"), [({"a": 0.3}, True), ({"a": 0.31}, False), ({"b": 0.3}, False)]
)
def test_sums_of_floats_are_the_same_in_any_order(other: dict[str, float], same: bool):
    assert close({"a": 0.1 + 0.2}, other) is same


def test_every_field_of_the_totals_says_how_it_adds_up():
    assert COUNTERS.keys() == Stats.model_fields.keys()


def test_nothing_adds_up_to_the_totals_of_no_shard():
    assert Stats(**{name: rule.add([]) for name, rule in COUNTERS.items()}) == Stats()


def test_what_the_totals_do_not_make_a_footer_has_as_the_same_type():
    shared = [name for name, rule in COUNTERS.items() if rule.of is None]
    for kind in (ShardFooter, RunManifest):
        for name in [name for name in shared if name in kind.model_fields]:
            assert kind.model_fields[name].annotation == Stats.model_fields[name].annotation
    assert set(shared) <= ShardFooter.model_fields.keys()


def test_one_annotated_field_is_one_counter():
    class Sums(Record):
        note: str = ""
        draws: Annotated[int, Adds(sum)] = 0
        widest: Annotated[float | None, Adds(largest, in_rows=False)] = None

    assert {name: rule.recounted for name, rule in counters(Sums).items()} == {
        "draws": True,
        "widest": False,
    }
