"""Parquet from strangers: a small file cannot take the memory that it stands for."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.records import Slice, SourceFile
from integrand.service.operator import Operator
from integrand.service.planning.cutting import cut
from integrand.service.running.jobs import plan_job
from integrand.workers.data import decoding, inspection
from integrand.workers.data.reading import read_slices
from integrand.workers.storage.store import Access, Store
from tests.plugins.files import inspected, whole
from tests.plugins.jobs import JobFolder

MiB = 1 << 20


def rows_bomb(place: Path) -> SourceFile:
    """300 million zeros in about a megabyte: 2.4 GB. A billion take 4.4 MB, and longer to write."""
    block = pa.table({"a": pa.array(np.zeros(5_000_000))})
    with pq.ParquetWriter(place, block.schema, compression="zstd") as writer:
        for _ in range(6):
            writer.write_table(pa.concat_tables([block] * 10), row_group_size=50_000_000)
    return inspected(place)


def string_bomb(place: Path, rows: int = 4096) -> SourceFile:
    """One string of 700 kB, once in the dictionary and in every row: 2.9 GB out of some hundred
    bytes.
    """
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 700_000])
    pq.write_table(
        pa.table({"id": ids.cast(pa.dictionary(pa.int32(), pa.string()))}),
        place,
        compression="brotli",
        store_schema=False,
    )
    return inspected(place)


def list_bomb(place: Path, values: int = 50_000_000) -> SourceFile:
    """One row that is a list of 50 million zeros: 400 MB."""
    zeros = pa.array(np.zeros(values))
    pq.write_table(
        pa.table({"l": pa.ListArray.from_arrays([0, values], zeros)}), place, compression="zstd"
    )
    return inspected(place)


CHILD = """
import json, re, resource, sys
from integrand.schemas.errors import DataError
from integrand.schemas.records import Slice, SourceFile
from integrand.workers.data.reading import read_slices
from integrand.workers.storage.store import Access, Store

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
file, start, stop, most, columns = map(json.loads, sys.argv[1:])
before = memory("VmRSS")
try:
    store, rows = Store(Access(decoded_bytes=most)), Slice(file=0, start=start, stop=stop)
    print("read", read_slices(store, [SourceFile(**file)], [rows], columns).num_rows)
except DataError as error:
    print("refused", error.seen)
print(memory("VmHWM") - before)
"""


def read_in_child(
    file: SourceFile,
    start: int,
    stop: int,
    most: int = Access.decoded_bytes,
    columns: list[str] | None = None,
) -> tuple[str, int]:
    """What reading these rows came to, in a process that may not have 4 GiB, and by how many bytes
    it grew at most.
    """
    told = [file.model_dump_json(), *(json.dumps(value) for value in (start, stop, most, columns))]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *told], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    outcome, grown = done.stdout.splitlines()
    return outcome, int(grown)


def test_a_megabyte_that_stands_for_gigabytes(tmp_path: Path):
    file = rows_bomb(tmp_path / "bomb.parquet")
    assert (file.size < 2 * MiB, file.rows) == (True, 300_000_000)
    outcome, grown = read_in_child(file, 0, file.rows)
    assert (outcome, grown < 200 * MiB) == ("refused 300000000 rows × 8 bytes", True), grown
    outcome, grown = read_in_child(file, 220_000_000, 220_100_000)
    assert (outcome, grown < 200 * MiB) == ("read 100000", True), grown


def test_a_few_hundred_bytes_that_stand_for_three_gigabytes(tmp_path: Path):
    file = string_bomb(tmp_path / "bomb.parquet")
    assert file.size < 1000
    outcome, grown = read_in_child(file, 0, file.rows)
    assert (outcome, grown < 200 * MiB) == ("refused 4096 rows × 700004 bytes", True), grown
    outcome, grown = read_in_child(file, 4000, 4010)
    assert (outcome, grown < 200 * MiB) == ("read 10", True), grown


def test_views_of_text_are_measured_before_they_are_spelt_out(tmp_path: Path):
    """The schema that Arrow leaves in a file may call strings views, which are no dictionaries to
    it.
    """
    place, rows = tmp_path / "bomb.parquet", 4096
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 700_000])
    views = pa.schema([("id", pa.string_view())]).serialize().to_pybytes()
    with pq.ParquetWriter(
        place, pa.schema([("id", ids.type)]), compression="brotli", store_schema=False
    ) as writer:
        writer.write_table(pa.table({"id": ids}))
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(views).decode()})
    outcome, grown = read_in_child(inspected(place), 0, rows)
    assert (outcome, grown < 200 * MiB) == ("refused 4096 rows × 700004 bytes", True), grown


def test_strings_within_lists_are_measured_a_few_rows_at_a_time(tmp_path: Path):
    rows = 4096
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 700_000])
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32)), words)
    pq.write_table(
        pa.table({"l": lists}), tmp_path / "bomb.parquet", compression="brotli", store_schema=False
    )
    outcome, grown = read_in_child(inspected(tmp_path / "bomb.parquet"), 0, rows, 100 * MiB)
    assert (outcome.startswith("refused 192 rows"), grown < 300 * MiB) == (True, True), (
        outcome,
        grown,
    )


@pytest.mark.parametrize("nested", [True, False])
def test_a_column_of_the_name_that_tells_of_bad_rows_costs_nothing(tmp_path: Path, nested: bool):
    rows = 4096
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 700_000])
    bad = pa.StructArray.from_arrays([words], ["s"]) if nested else words
    pq.write_table(
        pa.table({"a": np.zeros(rows), "_bad": bad}),
        tmp_path / "t.parquet",
        compression="brotli",
        store_schema=False,
    )
    outcome, grown = read_in_child(
        inspected(tmp_path / "t.parquet"), 0, rows, columns=["a", "_bad"]
    )
    assert (outcome, grown < 100 * MiB) == ("read 4096", True), grown


def test_a_column_of_that_name_marks_nobodys_rows(job: JobFolder):
    job.write_rows(_bad=["<script>"] * 20)
    assert job.run().statuses == {"unchecked": 20}


def test_one_row_that_is_too_large(tmp_path: Path):
    file = list_bomb(tmp_path / "bomb.parquet")
    assert file.size < MiB
    outcome, grown = read_in_child(file, 0, 1, 300 * MiB)
    assert (outcome, grown < 200 * MiB) == ("refused 1 rows × 400000000 bytes", True), grown


def test_what_a_shard_may_take_is_for_the_operator_to_say(tmp_path: Path):
    file = string_bomb(tmp_path / "bomb.parquet", 100)
    assert read_slices(Store(), [file], whole(file), None).nbytes > 70_000_000
    with pytest.raises(
        DataError, match=r"at most 1000000 bytes of decoded columns at once(.|\n)*decoded_bytes"
    ):
        read_slices(Store(Access(decoded_bytes=1_000_000)), [file], whole(file), None)


def test_a_plan_cuts_shards_that_fit_or_says_that_none_do(job: JobFolder):
    """12 bytes of inputs a row; a plan that is left to cut them itself does it within the room
    there is.
    """
    job.write_rows(count=100)
    tight = Access(decoded_bytes=400)
    spec = job.spec(compute={"shard_rows": 50, "batch_rows": 16})
    with pytest.raises(SpecError, match=r"50 rows × 12 bytes(.|\n)*shard_rows: 33"):
        plan_job(spec, base=str(job.path), operator=Operator(trusted=(job.module,), access=tight))
    spec = job.spec(compute={"batch_rows": 16})
    plan = plan_job(
        spec, base=str(job.path), operator=Operator(trusted=(job.module,), access=tight)
    )
    assert max(s.rows for s in plan.shards) <= 16


def test_a_footer_that_claims_any_number_of_rows_makes_no_plan_of_any_size():
    file = SourceFile(
        path="a", uri="/a", rows=10**15, size=500, fingerprint="", row_groups=(10**15,)
    )
    with pytest.raises(SpecError, match="at most 1000000 shards"):
        cut([file], 10_000)


def test_the_slices_of_a_shard_share_its_room(tmp_path: Path):
    file = string_bomb(tmp_path / "bomb.parquet", 100)
    slices = [Slice(file=0, start=i, stop=i + 10) for i in range(0, 100, 10)]
    with pytest.raises(DataError, match=r"rows \[50, 60\)"):
        read_slices(Store(Access(decoded_bytes=40_000_000)), [file], slices, None)


def test_reading_a_local_file_leaves_no_thread_of_arrows(tmp_path: Path):
    """One that still held a part of the file when Python ended aborted a process that was done, one
    in some hundred.
    """
    pq.write_table(pa.table({"a": np.zeros(4096)}), tmp_path / "t.parquet")
    file = inspected(tmp_path / "t.parquet")
    code = CHILD.replace(
        "before = memory", "import os; there = len(os.listdir('/proc/self/task')); before = memory"
    )
    code += "print(len(os.listdir('/proc/self/task')) - there)"
    told = [file.model_dump_json(), *(json.dumps(value) for value in (0, 4096, 1 << 30, ["a"]))]
    done = subprocess.run(
        [sys.executable, "-c", code, *told], capture_output=True, text=True, timeout=250, check=True
    )
    assert [done.stdout.splitlines()[i] for i in (0, -1)] == ["read 4096", "0"]


def test_columns_that_are_not_asked_for_cost_nothing(tmp_path: Path):
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4096, np.int32)), ["x" * 700_000])
    pq.write_table(
        pa.table({"id": ids, "a": np.zeros(4096), "id.b": ids}),
        tmp_path / "t.parquet",
        compression="brotli",
        store_schema=False,
    )
    file = inspected(tmp_path / "t.parquet")
    outcome, grown = read_in_child(file, 0, 4096, columns=["a"])
    assert (outcome, grown < 100 * MiB) == ("read 4096", True), grown


@pytest.mark.parametrize("batch_bytes", [1, 5_000, decoding.BATCH_BYTES])
def test_rows_are_the_same_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
):
    """Strings, plain and dictionary-coded, nulls, decimals, lists of any length: as pyarrow reads
    them whole.
    """
    rng = np.random.default_rng(3)
    lists = [None if i % 13 == 0 else rng.normal(size=i % 7).tolist() for i in range(500)]
    table = pa.table(
        {
            "s": [None if i % 9 == 0 else f"id {i}" for i in range(500)],
            "same": ["again"] * 500,
            "b": [b"\x00\xff"] * 500,
            "large": pa.array([f"{i}" for i in range(500)], pa.large_string()),
            "l": lists,
            "n": rng.normal(size=500),
            "d": pa.array(range(500), pa.decimal128(9, 2)),
            "k": pa.array(["a", "b"] * 250).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=170)
    file = inspected(tmp_path / "t.parquet")
    monkeypatch.setattr(decoding, "BATCH_BYTES", batch_bytes)
    ticks: list[None] = []
    found = read_slices(
        Store(), [file], [Slice(file=0, start=160, stop=420)], None, lambda: ticks.append(None)
    )
    assert found.schema.equals(table.schema)
    assert found.to_pylist() == table.slice(160, 260).to_pylist()
    assert (len(ticks) > 200) == (batch_bytes == 1)


@pytest.mark.parametrize(
    ("limit", "value", "seen"),
    [
        ("_FOOTER_BYTES", 500, "a footer of"),
        ("_COLUMNS", 3, "4 columns"),
        ("_ROW_GROUPS", 1, "2 row groups"),
    ],
)
def test_absurd_footers_are_refused(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, seen: str
):
    place = job.write_rows(row_group_size=10)
    monkeypatch.setattr(inspection, limit, value)
    with pytest.raises(DataError, match=seen):
        inspected(place)
