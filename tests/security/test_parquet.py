"""Parquet from strangers: no code of theirs runs."""

from __future__ import annotations

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

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import verify_run
from integrand.service.runs.footers import read_footers
from integrand.service.runs.query import open_run
from integrand.workers.data import decoding
from integrand.workers.data.columns import check_number, check_scalar
from integrand.workers.data.reading import read_slices
from integrand.workers.storage.store import Store
from tests.plugins.files import inspected, whole
from tests.plugins.jobs import JobFolder

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
