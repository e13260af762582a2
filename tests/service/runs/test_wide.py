"""Reasons side by side hold what the lists of reasons hold."""

import csv
import io

import pyarrow as pa
import pytest

from integrand.schemas.tables import REASON
from integrand.service.reports.spreadsheet import write_csv
from integrand.service.runs.wide import PARTS, reasons_wide


def reason(rank: int, code: str | None, text: str | None) -> dict[str, object]:
    told = {"rank": rank, "code": code, "feature": f"f{rank}", "value": "1,5", "text": text}
    return told | {"contribution": -0.5 / rank, "share": 0.25, "separated": rank == 1}


LISTS = [
    [reason(1, "A", "too short"), reason(2, "B", "=too long")],
    None,
    [],
    [reason(1, None, None)],
]
COLUMNS = {
    "row_id": pa.array([1, 2, 3, 4]),
    "reasons": pa.array(LISTS, pa.list_(REASON)),
    "reasons_status": pa.array(["certified", None, "none_toward", "prohibited"]),
}
TABLE = pa.table(COLUMNS)


@pytest.mark.parametrize("table", [TABLE, pa.concat_tables([TABLE[:1], TABLE[1:]]), TABLE[2:]])
def test_each_part_of_each_reason_is_a_column(table: pa.Table) -> None:
    wide = reasons_wide(table, 3)
    expected = [f"reason_{rank}_{part}" for rank in (1, 2, 3) for part in PARTS]
    assert wide.column_names == ["row_id", *expected, "reasons_status"]
    assert PARTS[0] == "code"
    assert PARTS[-1] == "text"
    for row, reasons in zip(wide.to_pylist(), table["reasons"].to_pylist(), strict=True):
        for rank in (1, 2, 3):
            own = dict(enumerate(reasons or [], 1)).get(rank, dict.fromkeys(PARTS))
            assert {part: row[f"reason_{rank}_{part}"] for part in PARTS} == {
                part: own[part] for part in PARTS
            }


def test_no_rows_have_the_same_columns() -> None:
    assert reasons_wide(TABLE.schema.empty_table(), 2).schema == reasons_wide(TABLE, 2).schema


def test_a_table_without_reasons_stays_as_it_is() -> None:
    plain = TABLE.select(["row_id"])
    assert reasons_wide(plain, 2) is plain


def test_a_mail_merge_reads_them() -> None:
    """Every text in quotes, nothing that a spreadsheet would run."""
    file = io.StringIO(newline="")
    assert write_csv(file, [reasons_wide(TABLE, 2)]) == 4
    first, *others = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert first["reason_1_text"] == "too short"
    assert first["reason_1_value"] == "1,5"
    assert first["reason_2_text"] == "'=too long"
    assert [row["reason_2_code"] for row in others] == ["", "", ""]
