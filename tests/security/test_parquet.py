"""Parquet from strangers: no code of theirs runs, and a small file cannot take the memory that it
stands for.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.records import Slice, SourceFile
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import verify_run
from integrand.service.operator import Operator
from integrand.service.planning.cutting import cut
from integrand.service.running.jobs import plan_job
from integrand.service.runs.footers import read_footers
from integrand.service.runs.query import open_run
from integrand.workers.data import decoding, inspection
from integrand.workers.data.columns import check_number, check_scalar
from integrand.workers.data.inspection import inspect_file
from integrand.workers.data.reading import read_slices
from integrand.workers.storage.store import Access, Store
from tests.plugins.jobs import JobFolder

MiB = 1 << 20


def inspected(place: Path) -> SourceFile:
    return inspect_file(Store(), Store().info(Uri("file", str(place))), place.name)[0]


def whole(file: SourceFile) -> list[Slice]:
    return [Slice(file=0, start=0, stop=file.rows)]


# --- code --------------------------------------------------------------------------------------


class Hostile(pa.ExtensionType):
    """What Ray Data's type was before 2.55: its deserializer unpickles what the file says."""

    def __init__(
        self, storage: pa.DataType, payload: bytes = b"", name: str = "ray.data.arrow_tensor"
    ) -> None:
        self.payload = payload
        super().__init__(storage, name)

    def __arrow_ext_serialize__(self) -> bytes:
        return self.payload

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Hostile:
        if serialized:
            pickle.loads(serialized)
        return cls(storage, serialized)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def hostile() -> Iterator[None]:
    """A process in which somebody imported such a Ray Data."""
    decoding.forget_extensions()
    pa.register_extension_type(Hostile(pa.list_(pa.float32())))
    yield
    decoding.forget_extensions()


def crafted(mark: Path, rows: int, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        Hostile(storage.type, pickle.dumps(Payload(mark))), storage
    )


def write_crafted(job: JobFolder, mark: Path) -> Path:
    """Twenty rows with a hostile column that no spec names, and one of features."""
    lists = pa.array([[float(i), 1.0, 2.0] for i in range(20)], pa.list_(pa.float32()))
    place = job.write_rows(beside=crafted(mark, 20, lists), tensor=crafted(mark, 20, lists))
    mark.unlink(missing_ok=True)
    return place


def test_opening_such_a_file_runs_its_payload_and_ours_does_not(
    job: JobFolder, tmp_path: Path, hostile: None
):
    mark = tmp_path / "ran"
    place = write_crafted(job, mark)
    pq.ParquetFile(place, arrow_extensions_enabled=False).close()
    assert mark.exists(), "the attack does not work: this test shows nothing"
    mark.unlink()
    file = inspected(place)
    pa.register_extension_type(Hostile(pa.list_(pa.float32())))  # imported again since
    table = read_slices(Store(), [file], whole(file), None)
    assert table["tensor"].type == pa.list_(pa.float32())
    assert not mark.exists()


def test_a_job_reads_its_storage_and_runs_nothing(job: JobFolder, tmp_path: Path, hostile: None):
    mark = tmp_path / "ran"
    write_crafted(job, mark)
    manifest = job.run(inputs=[{"name": "tensor", "column": "tensor", "shape": [3]}])
    assert (manifest.complete, manifest.statuses, mark.exists()) == (True, {"unchecked": 20}, False)


READERS: dict[str, Callable[[Uri, str], object]] = {
    "footers": lambda run, module: list(read_footers(Store(), run, ["00000"])),
    "frame": lambda run, module: open_run(str(run)).to_pandas(),
    "worst": lambda run, module: open_run(str(run)).worst(2),
    "verification": lambda run, module: verify_run(str(run), sample=0),
    "sample of it": lambda run, module: verify_run(str(run), sample=20, trusted=(module,)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_a_run_folder_runs_nothing(
    job: JobFolder, tmp_path: Path, hostile: None, name: str
):
    """Whoever may write to the output root may put such a file in the place of a shard's object."""
    mark, manifest = tmp_path / "ran", job.run()
    place = job.objects(manifest)[0]
    own, table = pq.read_metadata(place).metadata, pq.read_table(place)
    pa.register_extension_type(Hostile(pa.list_(pa.float32())))
    lists = pa.array([[1.0]] * table.num_rows, pa.list_(pa.float32()))
    table = table.append_column("x", crafted(mark, table.num_rows, lists))
    pq.write_table(
        table.replace_schema_metadata({k: v for k, v in own.items() if k != b"ARROW:schema"}), place
    )
    mark.unlink(missing_ok=True)
    with suppress(IntegrityError):
        READERS[name](job.run_uri(manifest), job.module)
    assert not mark.exists()


def test_parquet_is_opened_in_one_place():
    root = Path(decoding.__file__).resolve().parents[2]
    found = {
        p.relative_to(root).as_posix()
        for folder in ("workers", "service")
        for p in (root / folder).rglob("*.py")
        if re.search(r"pq\.(ParquetFile\(|read_)|make_fragment", p.read_text())
    }
    packaged = {"service/demos/mnist.py"}  # reads what comes with the package
    assert found == {"workers/data/decoding.py", "service/runs/query.py"} | packaged


def test_model_code_that_imports_ray_data_changes_nothing(job: JobFolder, tmp_path: Path):
    """The real types, asked to unpickle as old files need it: the worker's reads come after the
    import.
    """
    import ray.data._internal.tensor_extensions.arrow as ray_types

    name = ray_types.ArrowTensorType((3,), pa.float32()).extension_name
    file = inspected(job.path / "data" / "rows.parquet")
    read_slices(Store(), [file], whole(file), None)
    with pytest.raises(pa.ArrowKeyError):
        pa.unregister_extension_type(name)


def test_every_type_of_ray_data_is_known():
    """The names that the installed Ray registers, in a process of its own."""
    code = (
        "import pyarrow as pa\nnames = []\nkept = pa.register_extension_type\n"
        "pa.register_extension_type = lambda t: (names.append(t.extension_name), kept(t))\n"
        "import ray.data\nprint(*names)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found
    assert set(found) <= set(decoding._EXTENSIONS)


ODD = {
    "map": pa.map_(pa.string(), pa.float64()),
    "struct": pa.struct([("a", pa.float64())]),
    "union": pa.dense_union([pa.field("a", pa.float64())]),
    "uuid": pa.uuid(),
    "json": pa.json_(),
    "opaque": pa.opaque(pa.float64(), "thing", "vendor"),
    "bool8": pa.bool8(),
    "tensor": pa.fixed_shape_tensor(pa.float32(), (2,)),
    "list": pa.list_(pa.int64()),
    "dictionary of lists": pa.dictionary(pa.int8(), pa.list_(pa.int64())),
    "text view": pa.string_view(),
    "view": pa.binary_view(),
    "nanoseconds of a day": pa.time64("ns"),
}


@pytest.mark.parametrize("kind", ODD.values(), ids=ODD)
def test_types_that_are_not_on_the_list_are_refused_by_name(kind: pa.DataType):
    schema = pa.schema([("odd", kind)])
    for check in (check_scalar, check_number):
        with pytest.raises(SpecError, match="column `odd`") as refused:
            check(schema, "odd")
        assert refused.value.seen == str(kind)


PLAIN = [
    pa.int8(),
    pa.uint64(),
    pa.float32(),
    pa.bool_(),
    pa.decimal128(9, 2),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.binary(16),
    pa.date32(),
    pa.timestamp("us", "UTC"),
    pa.time64("us"),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_ids_of_plain_types_are_taken(kind: pa.DataType):
    assert check_scalar(pa.schema([("id", kind)]), "id") == kind


def test_ids_that_arrow_cannot_compare_are_refused_while_planning(job: JobFolder):
    job.write_rows(id=np.arange(20).astype(np.float16))
    with pytest.raises(SpecError, match=r"column `id`(.|\n)*halffloat"):
        job.plan()


# --- memory ------------------------------------------------------------------------------------


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
