"""Row ids that are one of a kind, of any type and in files of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.errors import DataError
from integrand.workers.data import row_ids as identity
from integrand.workers.data.reading import CONTENT
from integrand.workers.data.row_ids import check_row_ids, hash_ids
from integrand.workers.storage.store import Access, Store
from tests.toys import put

STORE = Store()


def test_row_ids_that_are_null_or_twice(tmp_path: Path) -> None:
    files = [
        put(tmp_path, "0.parquet", pa.table({"id": list(range(25))})),
        put(tmp_path, "1.parquet", pa.table({"id": list(range(25, 40))})),
    ]
    check_row_ids(STORE, files, "id")
    twice = [*files, put(tmp_path, "2.parquet", pa.table({"id": [100, 27, 3, 101]}))]
    with pytest.raises(
        DataError,
        match=r"2 ids .* (27 at 1.parquet#2 and 2.parquet#1|3 at 0.parquet#3 and 2.parquet#2)",
    ):
        check_row_ids(STORE, twice, "id")
    null = [*files, put(tmp_path, "3.parquet", pa.table({"id": [200, None, None]}))]
    with pytest.raises(DataError, match=r"2 null, the first at 3.parquet#1") as error:
        check_row_ids(STORE, null, "id")
    assert "drop source.row_id" in error.value.next_step
    nan = [put(tmp_path, "4.parquet", pa.table({"id": [0.5, float("nan")]}))]
    with pytest.raises(DataError, match=r"no NaN[\s\S]*1 null, the first at 4.parquet#1"):
        check_row_ids(STORE, nan, "id")


def test_a_line_without_an_id_is_excused(tmp_path: Path) -> None:
    table = pa.table(
        {"id": pa.array(["a", None, None]), "_bad": [None, "line 3: broken", "line 4: broken"]},
        metadata={CONTENT: b"a piece"},
    )
    check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")
    table = table.set_column(1, "_bad", pa.array([None, "line 3: broken", None]))
    with pytest.raises(DataError, match="1 null"):
        check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.string(), pa.binary(9), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_more_ids_than_a_shard_may_take(tmp_path: Path, kind: pa.DataType) -> None:
    """40 kB of ids or more, by the kilobyte."""
    tight, names = Store(Access(decoded_bytes=1000)), [f"{i:09d}" for i in range(5000)]
    ids = (
        pa.array(range(5000))
        if kind == pa.int64()
        else pa.array(names).cast(pa.binary()).cast(kind)
    )
    files = [put(tmp_path, "0.parquet", pa.table({"id": ids}), 1500)]
    check_row_ids(tight, files, "id")
    files.append(put(tmp_path, "1.parquet", pa.table({"id": ids[4321:4322]})))
    with pytest.raises(
        DataError,
        match=r"1 ids .*4321' at 0.parquet#4321 and 1.parquet#0|1 ids .* 4321 at 0.parquet#4321",
    ):
        check_row_ids(tight, files, "id")


def test_one_id_that_is_larger_than_a_shard_may_be(tmp_path: Path) -> None:
    file = put(tmp_path, "0.parquet", pa.table({"id": ["a", "b" * 2000, "c"]}))
    with pytest.raises(DataError, match="at most 1000 bytes"):
        check_row_ids(Store(Access(decoded_bytes=1000)), [file], "id")


def test_an_id_is_the_same_in_files_of_unlike_types(tmp_path: Path) -> None:
    kinds = pa.int32(), pa.int64(), pa.float64()
    files = [
        put(tmp_path, f"{k}.parquet", pa.table({"id": pa.array([k, -7 - k], kind)}))
        for k, kind in enumerate(kinds)
    ]
    check_row_ids(STORE, files, "id")
    for kind in kinds:
        again = put(tmp_path, "9.parquet", pa.table({"id": pa.array([50, -7], kind)}))
        with pytest.raises(DataError, match=r"1 ids .* -7(.0)? at 0.parquet#1 and 9.parquet#1"):
            check_row_ids(STORE, [*files, again], "id")


def test_ids_are_one_of_a_kind_whatever_they_hash_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two hashes for all ids, each of them is compared."""
    monkeypatch.setattr(identity, "hash_ids", lambda ids: hash_ids(ids) % np.uint64(2))
    files = [put(tmp_path, "0.parquet", pa.table({"id": [f"id {i}" for i in range(25)]}))]
    check_row_ids(STORE, files, "id")
    files.append(put(tmp_path, "1.parquet", pa.table({"id": ["id 99", "id 24"]})))
    with pytest.raises(DataError, match=r"'id 24' at 0.parquet#24 and 1.parquet#1"):
        check_row_ids(STORE, files, "id")


IDS = (
    [
        pa.array([1, -1, None, 1], kind)
        for kind in (
            pa.int8(),
            pa.float16(),
            pa.float64(),
            pa.decimal32(5, 2),
            pa.decimal128(9, 2),
            pa.decimal256(50),
            pa.date32(),
            pa.timestamp("us", "UTC"),
            pa.time64("us"),
            pa.duration("s"),
        )
    ]
    + [
        pa.array([b"abc", b"\xff\x00c", None, b"abc"], kind)
        for kind in (pa.binary(), pa.large_binary(), pa.binary(3))
    ]
    + [
        pa.array([True, False, None, True]),
        pa.array(["a", "", None, "a"]),
        pa.array([2**62, -(2**62), None, 2**62], pa.timestamp("s")),
    ]
)


@pytest.mark.parametrize("ids", IDS, ids=lambda ids: str(ids.type))
def test_every_type_of_id_has_hashes(ids: pa.Array) -> None:
    one, other, again = hash_ids(ids)
    assert (one == again, one == other) == (True, False)
    assert hash_ids(ids[1:]).tolist() == [other, again]
