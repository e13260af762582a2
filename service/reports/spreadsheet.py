"""Output rows as CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import TextIO

import pyarrow as pa

from integrand.workers.data.values import plain_values

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What starts a formula in Excel, LibreOffice and Google Sheets:
https://owasp.org/www-community/attacks/CSV_Injection
"""


def write_csv(file: TextIO, tables: Iterable[pa.Table]) -> int:
    """Write tables of one schema with a header; the number of rows. Null is empty, a list
    is JSON.
    """
    # Every text in quotes: a separator in it starts a cell of its own in a spreadsheet of another
    # locale. Lines end in CR LF: a dialect that ends them otherwise leaves a bare CR unquoted.
    writer, rows = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC), 0
    for table in tables:
        if not rows:
            writer.writerow([_cell(name) for name in table.column_names])
        writer.writerows(
            zip(
                *([_cell(v) for v in plain_values(column)] for column in table.columns), strict=True
            )
        )
        rows += table.num_rows
    return rows


def _cell(value: object) -> object:
    """A number as it is; a text that would be taken for a formula after an apostrophe, which
    spreadsheets hide.
    """
    text = json.dumps(value) if isinstance(value, list) else value
    if isinstance(text, str) and text.startswith(_FORMULA):
        return f"'{text}"
    return text
