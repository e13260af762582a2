"""Results as DataFrames: finds a run, reads its committed objects with pushdown. Imports neither
torch nor ray.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import shard_object
from integrand.schemas.records import Plan, RunManifest, Shard
from integrand.schemas.tables import PLACES, PREFIX, PREFIXES, feature_names
from integrand.schemas.uris import Uri
from integrand.service.runs.conditions import (
    Filters,
    check_columns,
    filter_expression,
    filtered,
)
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.frames import (
    feature_sums,
    largest_rows,
    pandas_frame,
    stored_id,
)
from integrand.service.runs.manifest import (
    fold,
    load_manifest,
    load_plan,
    read_quarantined,
)
from integrand.service.runs.totals import read_committed
from integrand.service.runs.wide import reasons_wide
from integrand.workers.data.columns import BAD
from integrand.workers.data.conditions import matching_rows, sandbox
from integrand.workers.data.decoding import forget_extensions
from integrand.workers.data.reading import read_slices
from integrand.workers.data.values import widened
from integrand.workers.storage.store import Access, Store

_THREADS = 8
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


# --- finding a run -----------------------------------------------------------------------------


def open_run(
    uri: str | os.PathLike[str] | Uri, *, name: str | None = None, access: Access = Access()
) -> Run:
    """A run, complete or not, from its folder or its output root; `name` picks one of several jobs
    of a root.

    An unfinished run warns once, and is read as it stands now: later commits are not seen by this
    object.
    """
    store = Store(access)
    run = resolve_run(uri, store=store, name=name)
    plan, plan_sha256 = load_plan(store, run)
    manifest = load_manifest(store, run)
    if manifest is None:
        committed = read_committed(RunFolder(store, run, plan, plan_sha256))
        manifest = fold(
            plan, plan_sha256, committed, read_quarantined(store, run), created=plan.created
        )
        manifest = manifest.model_copy(update={"complete": False})
        warnings.warn(
            f"run {run} is unfinished: {manifest.rows_in} of {manifest.rows_planned} rows are in; "
            "`integrand run` with the same spec resumes it",
            stacklevel=2,
        )
    if (manifest.run_id, manifest.plan_sha256) != (plan.run_id, plan_sha256):
        raise IntegrityError(
            str(run),
            expected=f"the manifest of run {plan.run_id} as planned",
            seen=f"one of run {manifest.run_id}, plan {manifest.plan_sha256[:12]}",
            next_step="restore the folder, or start a new run with --fresh",
        )
    return Run(run, plan, manifest, store)


# --- reading a run -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """A stored run. Every method reads committed objects only and verifies their page checksums."""

    uri: Uri
    plan: Plan = field(repr=False)
    manifest: RunManifest = field(repr=False)
    store: Store = field(repr=False)

    @property
    def complete(self) -> bool:
        """Every planned row is in."""
        return self.manifest.complete

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards whose objects are committed. DataError while there is none."""
        missing = set(self.manifest.missing)
        found = tuple(s for s in self.plan.shards if s.id not in missing)
        if not found:
            raise DataError(
                str(self.uri),
                expected="at least one committed shard",
                seen="none",
                next_step="run the job (again): it resumes",
            )
        return found

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the output. Those of float16 are read as float32, which holds the same numbers
        and which conditions can be about.
        """
        with _fragment(self.store, self._object(self.shards[0])) as fragment:
            return widened(fragment.physical_schema)

    def to_pandas(
        self,
        columns: Sequence[str] | None = None,
        filters: Filters | None = None,
        inputs: bool = False,
    ) -> pd.DataFrame:
        """One row per (input row, target), in the order of the input.

        `columns` picks output columns. `inputs=True` adds all columns of the source,
        `input.`-prefixed where a name collides, once the source is seen to be the planned one (else
        IntegrityError); `filters` may name these too. `df.attrs["complete"]` tells whether every
        planned row is in.
        """
        check_columns(columns or (), self.schema.names)
        expression = filter_expression(filters)
        if not inputs:
            filtered(self.schema.empty_table(), expression)
        read = self._read_with_inputs if inputs else self._read
        with ThreadPoolExecutor(_THREADS) as threads:
            tables = list(threads.map(lambda shard: read(shard, columns, expression), self.shards))
        return self._frame(pa.concat_tables(tables, promote_options="permissive"))

    def some(self, most: int) -> pd.DataFrame:
        """About `most` rows, of whole shards that are evenly spread over the run, with the source's
        columns beside them like those of `to_pandas(inputs=True)`.
        """
        rows = sum(shard.rows for shard in self.shards)
        stride = -(-rows // most)
        chosen = self.shards[::stride]
        tables = [self._read_with_inputs(shard, None, None) for shard in chosen]
        return self._frame(pa.concat_tables(tables, promote_options="permissive"))

    def tables(self) -> Iterator[pa.Table]:
        """The output rows one committed shard at a time, in the order of the input."""
        return (self._read(shard) for shard in self.shards)

    def reasons_wide(self) -> pd.DataFrame:
        """The rows that have reasons, with these side by side: `row_id`, what else is known but the
        attributions, and `reason_1_code`, `reason_1_feature` … `reason_4_text`, where 4 is the `k`
        of `output.reasons`. SpecError for a run without reasons.
        """
        columns = [n for n in self.schema.names if not n.startswith(PREFIX)]
        check_columns(["reasons"], columns)
        given = pc.field("reasons").is_valid()
        found = [self._wide(self._read(shard, columns, given)) for shard in self.shards]
        return self._frame(pa.concat_tables(found))

    def wide_tables(self) -> Iterator[pa.Table]:
        """Like `tables`, with reasons side by side."""
        return map(self._wide, self.tables())

    def _wide(self, table: pa.Table) -> pa.Table:
        asked = self.plan.spec.output.reasons
        if asked is None:
            return table
        features = sum(len(shape.columns) for shape in self.plan.inputs)
        return reasons_wide(table, min(asked.k, features))

    def rows(self, row_id: object) -> pd.DataFrame:
        """The output rows of one input row, or of all rows that share the id; empty if there is
        none.
        """
        return self.to_pandas(
            filters=pc.field("row_id") == stored_id(row_id, self.schema.field("row_id").type)
        )

    def where(self, sql: str) -> pd.DataFrame:
        """The rows for which a DuckDB boolean expression over the output columns is true.

        Names with a dot are quoted: `"attr.age" > 1`. SpecError if the expression cannot be
        evaluated.
        """
        empty = self.schema.empty_table()
        mentioned = [
            n
            for n in empty.column_names
            if not n.startswith((*PREFIXES, PLACES)) or n.casefold() in sql.casefold()
        ]
        found = [empty]
        with sandbox() as connection:
            matching_rows(connection, empty, sql)
            for shard in self.shards:
                positions = matching_rows(connection, self._read(shard, mentioned), sql)
                if len(positions):
                    found.append(self._read(shard).take(positions))
        return self._frame(pa.concat_tables(found))

    def worst(self, k: int = 10) -> pd.DataFrame:
        """The `k` rows of largest error_estimate, then the `k` of largest |gap|, without their
        attributions.

        `worst_by` says which of the two; a row may be in both.
        """
        columns = [n for n in self.schema.names if not n.startswith((*PREFIXES, PLACES))]
        none = self.schema.empty_table().select(columns)
        best = {"error_estimate": none, "gap": none}
        for shard in self.shards:
            table = self._read(shard, columns)
            for key, top in best.items():
                candidates = pa.concat_tables([top, table])
                best[key] = largest_rows(candidates, key, k)
        marked = []
        for key, top in best.items():
            worst_by = pa.repeat(key, top.num_rows)
            marked.append(top.append_column("worst_by", worst_by))
        return self._frame(pa.concat_tables(marked))

    def top_features(self, k: int = 10) -> pd.DataFrame:
        """The `k` features of largest mean |attribution|, over the rows that have attributions.

        Columns: feature (tensors flattened, as in `image[0,12,3]`), mean_abs and mean (in units of
        f), and share: mean_abs over the sum of mean_abs of all features. Where the largest of each
        row are stored alone, the others count as zeros. Reads one shard at a time.
        """
        columns = [n for n in self.schema.names if n.startswith((PREFIX, PLACES))]
        features: list[str] = []
        for column in columns:
            if column.startswith(PREFIX):
                features += feature_names(self.schema.field(column))
        names = np.array(features)
        total = np.zeros(len(names))
        absolute = np.zeros(len(names))
        count = 0
        for shard in self.shards:
            sums = feature_sums(self._read(shard, columns))
            total += sums.total
            absolute += sums.absolute
            count += sums.rows
        top = np.argsort(-absolute, kind="stable")[:k]
        rows = max(1, count)
        found = {
            "feature": names[top],
            "mean_abs": absolute[top] / rows,
            "mean": total[top] / rows,
            "share": absolute[top] / (absolute.sum() or 1.0),
        }
        return self._frame(pa.table(found))

    def _object(self, shard: Shard) -> Uri:
        return self.uri.child(shard_object(shard.id))

    def _read(
        self,
        shard: Shard,
        columns: Sequence[str] | None = None,
        expression: ds.Expression | None = None,
    ) -> pa.Table:
        asked = list(columns) if columns is not None else None
        with _fragment(self.store, self._object(shard)) as fragment:
            narrow = widened(fragment.physical_schema) != fragment.physical_schema
            if not narrow or expression is None:
                found = fragment.to_table(columns=asked, filter=expression)
                return found.cast(widened(found.schema)) if narrow else found
            whole = fragment.to_table()
            found = filtered(whole.cast(widened(whole.schema)), expression)
            return found if asked is None else found.select(asked)

    def _read_with_inputs(
        self, shard: Shard, columns: Sequence[str] | None, expression: ds.Expression | None
    ) -> pa.Table:
        """A shard's rows are those of its slices, in order, each repeated for every target."""
        output = self._read(shard)
        source = read_slices(self.store, self.plan.files, shard.slices, None)
        numbers = np.repeat(np.arange(source.num_rows), self.plan.targets_per_row)
        repeated = source.take(numbers)
        if repeated.num_rows != output.num_rows:
            raise IntegrityError(
                str(self._object(shard)),
                expected=f"{repeated.num_rows} rows, as planned",
                seen=f"{output.num_rows}",
                next_step="run the job again with --fresh",
            )
        kept = list(output.column_names if columns is None else columns)
        for name in [n for n in repeated.column_names if n != BAD]:
            prefixed = f"input.{name}" if name in self.schema.names else name
            output = output.append_column(prefixed, repeated[name])
            kept.append(prefixed)
        return filtered(output, expression).select(kept)

    def _frame(self, table: pa.Table) -> pd.DataFrame:
        frame = pandas_frame(table)
        frame.attrs["complete"] = self.complete
        return frame


@contextmanager
def _fragment(store: Store, place: Uri) -> Iterator[ds.ParquetFileFragment]:
    """A committed object, open; whatever then is wrong with its bytes is an IntegrityError."""
    try:
        forget_extensions()
        with store.open(place) as file:
            yield _FORMAT.make_fragment(file)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(
            str(place),
            expected="the object as it was committed",
            seen=str(error).split("\n")[0],
            next_step="move it away and run again: its shard is redone",
        ) from error
