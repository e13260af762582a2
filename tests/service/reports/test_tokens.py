"""Tokens on the colours of their attributions."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest

from integrand.service.reports.tokens import (
    colour_of,
    coloured_tokens,
    show_tokens,
)
from integrand.service.terminal import Terminal


def record(**changes: Any) -> pd.Series[Any]:
    row = {"tokens": ["good", "<b>", "bad"], "attr.tokens": [1.0, 0.0, -1.0]}
    return pd.Series(row | changes)


def test_colours_are_symmetric_about_white() -> None:
    assert colour_of(0) == "#ffffff"
    assert colour_of(1) == "#d6604d"
    assert colour_of(-1) == "#4393c3"


def test_each_token_has_its_attribution_and_the_largest_the_strongest_colour() -> None:
    found = coloured_tokens(record())
    assert [(token.text, token.attribution) for token in found] == [
        ("good", 1.0),
        ("<b>", 0.0),
        ("bad", -1.0),
    ]
    assert [token.colour for token in found] == ["#d6604d", "#ffffff", "#4393c3"]


def test_sums_of_words_are_told_by_word() -> None:
    found = coloured_tokens(record(**{"words": ["all", "told"], "attr.tokens": [2.0, -1.0]}))
    assert [token.text for token in found] == ["all", "told"]


@pytest.mark.parametrize("other", [None, ["one"]])
def test_rows_without_a_number_for_each_token_have_no_colours(other: Any) -> None:
    assert coloured_tokens(record(tokens=other)) == ()


def test_few_zeros_are_white() -> None:
    assert {token.colour for token in coloured_tokens(record(**{"attr.tokens": [0.0] * 3}))} == {
        "#ffffff"
    }


def test_a_token_cannot_move_the_cursor() -> None:
    sink = io.StringIO()
    console = Terminal(file=sink, force_terminal=True, color_system="truecolor", width=80)
    show_tokens(console, record(tokens=["\x1b[2J", "<b>", "[red]"]))
    assert "\x1b[2J" not in sink.getvalue()
    assert "[red]" in sink.getvalue()


def test_a_terminal_shows_colours_behind_tokens() -> None:
    sink = io.StringIO()
    console = Terminal(file=sink, force_terminal=True, color_system="truecolor", width=80)
    show_tokens(console, record())
    assert "48;2;214;96;77mgood" in sink.getvalue()
    assert "48;2;67;147;195mbad" in sink.getvalue()
    assert "99th percentile" in sink.getvalue()
