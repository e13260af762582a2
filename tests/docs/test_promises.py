"""Every promise names tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "What is promised, and what proves it",
    "What the literature describes, and the test that shows it",
)


def rows_of(section: str) -> list[str]:
    text = (ROOT / "tests/README.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]


ROWS = [row for section in SECTIONS for row in rows_of(section)]


def test_there_are_promises():
    assert all(len(rows_of(section)) > 10 for section in SECTIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_promise_names_tests_that_exist(row: str):
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.split("|")[2])
    assert named, "a promise without a test is a wish"
    for place, test in named:
        source = ROOT / "tests" / place
        assert source.is_file(), place
        functions = [
            n.name for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef)
        ]
        assert test in functions if test else any(name.startswith("test_") for name in functions), (
            f"{place}::{test}"
        )
