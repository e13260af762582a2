"""What every demonstration has: a folder of inputs, facts about its model, a spec, an outcome; and
how it runs.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console

from integrand.schemas.errors import SpecError
from integrand.schemas.record import Record, dump
from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.progress import shown_on
from integrand.service.terminal import Terminal
from integrand.workers.methods.table import method_of
from integrand.workers.storage.store import Access, Store

FACTS = "facts.json"
SPEC = "spec.yaml"
TRUSTED = ("integrand.service.demos",)


class Facts(Record):
    """What training measured. Stored last: its existence means that every input of the
    demonstration is in place.
    """

    recipe: int
    measure: str
    value: float


@dataclass(frozen=True)
class Outcome:
    """What a finished run shows: findings (name, value) to print, and a PNG."""

    findings: tuple[tuple[str, str], ...]
    png: bytes


@dataclass(frozen=True)
class DemoFolder:
    """The inputs of a demonstration, at `<out>/_demo`: source files, weights, spec, facts and the
    picture.
    """

    store: Store
    out: Uri

    def uri(self, name: str) -> Uri:
        return self.out.child("_demo", name)

    def read(self, name: str) -> bytes:
        return self.store.read(self.uri(name))

    def write(self, name: str, data: bytes) -> None:
        self.store.replace(self.uri(name), data)

    def write_source(self, name: str, table: pa.Table, files: int) -> None:
        """Cut a table into Parquet files `<name>/part-<n>.parquet` of nearly equal size."""
        size = -(-table.num_rows // files)
        for number in range(files):
            part = table.slice(number * size, size)
            sink = io.BytesIO()
            pq.write_table(part, sink, compression="zstd")
            self.write(f"{name}/part-{number}.parquet", sink.getvalue())

    def facts(self, recipe: int) -> Facts | None:
        """Facts of inputs that are in place and made by this recipe, else None."""
        if not self.store.exists(self.uri(FACTS)):
            return None
        found = Facts.model_validate_json(self.read(FACTS))
        return found if found.recipe == recipe else None

    def finish(self, spec_text: str, facts: Facts) -> None:
        """Declare the inputs complete; the spec lies beside them for `integrand run`."""
        self.write(SPEC, spec_text.encode())
        self.write(FACTS, dump(facts))


def fill_spec(template: str, folder: DemoFolder, *, source: str, weights: str) -> str:
    """A spec's YAML with its places {source}, {weights} and {out} filled in, quoted."""
    places = {"source": folder.uri(source), "weights": folder.uri(weights), "out": folder.out}
    quoted = {name: json.dumps(str(uri)) for name, uri in places.items()}
    return template.format(**quoted)


def read_spec(text: str) -> AttributeSpec:
    return parse_spec(yaml.safe_load(text), where="the demo's spec")


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded random numbers and one thread inside, as before outside: the same weights on any
    number of cores.

    Layers this small gain little from a second thread, and lose much where another process has that
    core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


class Demo(Protocol):
    """A demonstration module."""

    @property
    def NAME(self) -> str: ...
    def prepare(self, folder: DemoFolder) -> tuple[AttributeSpec, Facts]: ...
    def explain(self, rows: pd.DataFrame, folder: DemoFolder) -> Outcome: ...


def run_demo(
    demo: Demo, out: str, *, access: Access | None = None, pool: Literal["ray", "local"] = "ray"
) -> int:
    """Prepare the inputs or reuse them, run the job, draw and print. Returns the exit code.

    Inputs are made from fixed seeds and kept, so the same command again is the same run and is done
    at once.
    """
    _require_pillow()
    from integrand.service.running.jobs import run_job

    console, store = Terminal(), Store(access or Access())
    folder = DemoFolder(store, store.parse(out, base=os.getcwd()))
    with console.status(f"{demo.NAME}: training the model"):
        spec, facts = demo.prepare(folder)
    operator = Operator(TRUSTED, store.access)
    with shown_on(console) as listen:
        manifest = run_job(spec, operator=operator, cluster=Cluster(pool), listen=listen)
    if manifest.complete:
        _present(demo, folder, spec, manifest, facts, console)
        return 0
    console.print(
        f"{manifest.rows_in} of {manifest.rows_planned} rows are in; the same command again resumes"
        " the run"
    )
    return 3


def _present(
    demo: Demo,
    folder: DemoFolder,
    spec: AttributeSpec,
    manifest: RunManifest,
    facts: Facts,
    console: Console,
) -> None:
    """Read the run back as a user would, write the picture, print the summary."""
    from integrand.service.demos import summary
    from integrand.service.runs.query import open_run

    run, picture = folder.out.child(manifest.run_id), f"{demo.NAME}.png"
    rows = open_run(run, access=folder.store.access).to_pandas(inputs=True)
    outcome = demo.explain(rows, folder)
    folder.write(picture, outcome.png)
    tolerance = method_of(spec.accuracy, spec.method).tolerance
    assert tolerance is not None
    shown = (
        *summary.run_sections(manifest, rows, tolerance),
        ((facts.measure, f"{facts.value:.4f}"), *outcome.findings),
    )
    summary.show(console, manifest, shown, run=str(run), picture=str(folder.uri(picture)))


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "demo",
            expected="Pillow, which draws the picture",
            seen=str(error),
            next_step="pip install 'integrand[image]'",
        ) from error
