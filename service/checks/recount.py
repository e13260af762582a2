"""One shard's object, counted again: every page is read, and its rows must tell what its footer
tells.

Imports neither torch nor ray.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY
from integrand.schemas.records import Plan, Quantiles, Shard, ShardFooter
from integrand.schemas.stats import COUNTERS
from integrand.schemas.tables import PREFIX, RowStatus, output_schema
from integrand.service.checks.findings import Finding, Remark, Unchecked, reason
from integrand.service.runs.footers import RunFolder
from integrand.workers.data.decoding import open_parquet
from integrand.workers.data.reading import read_slices, row_ids
from integrand.workers.data.row_ids import hash_ids
from integrand.workers.data.values import plain_value
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.output import (
    attribution_fields,
    repeated_targets,
    results_of,
    results_table,
)
from integrand.workers.shards.parquet import checksum, write_parquet
from integrand.workers.shards.results import Results

_ARROW_SCHEMA = "ARROW:schema"
_COUNTED = tuple(name for name, rule in COUNTERS.items() if rule.recounted)
_SILENT = (RowStatus.ok, RowStatus.unchecked)
"""Statuses without a reason."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What the bytes of a shard's object hold, every page of them decoded and its checksum
    compared.
    """

    footer: ShardFooter
    metadata: dict[str, str]
    arrow_schema: str
    group_rows: int
    table: pa.Table


@dataclass(frozen=True, eq=False)
class Recount:
    """What came of one object: its footer if it can be read, a 64-bit hash of each row id, and
    remarks.
    """

    footer: ShardFooter | None
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, eq=False)
class Recounter:
    """Counts the shards of one run again."""

    folder: RunFolder

    def recount(self, shard: Shard, where: str, data: bytes) -> Recount:
        """Everything that can be told from the bytes of one object; `where` names it."""
        try:
            stored = decoded(data)
        except (
            pa.ArrowException,
            OSError,
            KeyError,
            ValueError,
        ) as error:
            # what broken bytes end with, in pyarrow too
            seen = f"{type(error).__name__}: {str(error)[:200]}".split("\n")[0]
            return Recount(
                None,
                remarks=(Finding(where, "a shard's Parquet object, as it was committed", seen),),
            )
        remarks = [*self._footer_remarks(shard, where, stored)]
        unlike = _unlike_columns(self.folder.plan, stored.table.schema)
        if unlike:
            finding = Finding(
                where, f"columns as planned: {_listed(unlike[0])}", _listed(unlike[1])
            )
            return Recount(stored.footer, remarks=(*remarks, finding))
        unknown = sorted(
            set(map(str, pc.unique(stored.table["status"]).to_pylist())) - set(RowStatus)
        )
        if unknown:
            remarks.append(Finding(where, f"statuses {', '.join(RowStatus)}", ", ".join(unknown)))
            return Recount(stored.footer, remarks=tuple(remarks))
        results = results_of(self.folder.plan, stored.table)
        remarks += self._row_remarks(shard, where, stored, results)
        remarks += _byte_remarks(where, stored, data)
        return Recount(
            stored.footer,
            hash_ids(results.row_id[:: self.folder.plan.targets_per_row]),
            tuple(remarks),
        )

    def _footer_remarks(self, shard: Shard, where: str, stored: Stored) -> Iterator[Remark]:
        footer, plan, sha256 = stored.footer, self.folder.plan, self.folder.plan_sha256
        expected = (
            plan.run_id,
            shard.id,
            sha256[:12],
            shard.rows,
            shard.rows * plan.targets_per_row,
        )
        seen = (
            footer.run_id,
            footer.shard,
            footer.plan_sha256[:12],
            footer.rows_in,
            footer.rows_out,
        )
        if seen != expected or footer.plan_sha256 != sha256:
            yield Finding(
                where, f"run, shard, plan, rows in, rows out: {_listed(expected)}", _listed(seen)
            )
        beside = sorted(stored.metadata.keys() - {FOOTER_KEY, CHECKSUM_KEY})
        told, counted = (
            stored.metadata.get(CHECKSUM_KEY),
            checksum(stored.metadata[FOOTER_KEY].encode()),
        )
        if beside:
            yield Finding(
                f"{where} footer", f"{FOOTER_KEY} and {CHECKSUM_KEY}, nothing else", _listed(beside)
            )
        elif told is None:
            yield Unchecked(
                "bits of footers that no count covers",
                "an older version put no checksum beside them",
            )
        elif told != counted:
            yield Finding(
                f"{where} footer",
                f"sha256 {told[:16]}…, which stands beside it",
                f"{counted[:16]}…",
            )

    def _row_remarks(
        self, shard: Shard, where: str, stored: Stored, results: Results
    ) -> Iterator[Remark]:
        plan = self.folder.plan
        counted = shard_footer(
            plan, self.folder.plan_sha256, shard, results, seconds={}, versions={}, same_build=True
        )
        for name in _COUNTED:
            told, seen = getattr(stored.footer, name), getattr(counted, name)
            if told != seen:
                yield Finding(
                    f"{where} footer, {name}", f"{told}, as it tells", f"{seen} in its rows"
                )
        for name in ("gap", "error"):
            if not _alike(getattr(stored.footer, name), getattr(counted, name)):
                yield Finding(
                    f"{where} footer, {name}",
                    str(getattr(stored.footer, name)),
                    str(getattr(counted, name)),
                )
        rebuilt = results_table(plan, results)
        yield from _null_remarks(where, stored.table, rebuilt, results)
        yield from _sum_remarks(where, stored.table, rebuilt, results)
        yield from self._identity_remarks(shard, where, results)

    def _identity_remarks(self, shard: Shard, where: str, results: Results) -> Iterator[Remark]:
        times = self.folder.plan.targets_per_row
        if len(results.row_id) != shard.rows * times:
            return  # said of the footer; nothing can be put beside the source
        yield from _target_remarks(where, self.folder.plan, results)
        try:
            expected = self._planned_ids(shard)
        except (IntegrityError, DataError) as error:
            yield Unchecked("row ids against the source", reason(error))
            return
        planned = expected.cast(results.row_id.type).take(np.repeat(np.arange(shard.rows), times))
        wrong = np.flatnonzero(_differ(results.row_id, planned))
        if len(wrong):
            row = int(wrong[0])
            yield Finding(
                where,
                f"row_id {plain_value(planned[row])!r} in row {row}, as in the source",
                f"{plain_value(results.row_id[row])!r}; {len(wrong)} rows differ",
            )

    def _planned_ids(self, shard: Shard) -> pa.Array:
        column, files = self.folder.plan.spec.source.row_id, self.folder.plan.files
        table = (
            pa.table({})
            if column is None
            else read_slices(self.folder.store, files, shard.slices, [column])
        )
        return row_ids(files, shard.slices, table, column)


def decoded(data: bytes) -> Stored:
    """The bytes of a shard's object, its columns of the types that they were written with."""
    with open_parquet(pa.BufferReader(data)) as parquet:
        metadata = {
            key.decode(): value.decode() for key, value in (parquet.metadata.metadata or {}).items()
        }
        group_rows, table = parquet.metadata.row_group(0).num_rows, parquet.read()
    # Parquet has no seconds and no date64: their columns come back as another type than they were
    # written with
    schema = metadata.pop(_ARROW_SCHEMA)
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
    footer = ShardFooter.model_validate_json(metadata[FOOTER_KEY])
    return Stored(footer, metadata, schema, group_rows, table.cast(written))


def _unlike_columns(plan: Plan, seen: pa.Schema) -> tuple[list[str], list[str]] | None:
    """The planned columns that are not there, and what is there instead; None where all are as
    planned.
    """
    places = plan.spec.target.places(plan.numerics.outputs) or ((0,),)
    target = repeated_targets(places, len(places)).type
    row_id = seen.field("row_id").type if "row_id" in seen.names else pa.null()
    expected = output_schema(row_id, target, attribution_fields(plan))
    told, found = ([_described(field) for field in schema] for schema in (expected, seen))
    told[0] = f"row_id {plan.row_id_type}"
    if told == found:
        return None
    missing = [field for field in told if field not in found]
    return (missing, [field for field in found if field not in told]) if missing else (told, found)


def _described(field: pa.Field) -> str:
    shape = (field.metadata or {}).get(b"shape", b"").decode()
    return (
        f"{field.name}"
        f" {field.type}{'' if field.nullable else ' not null'}{shape and f' of shape {shape}'}"
    )


def _null_remarks(
    where: str, table: pa.Table, rebuilt: pa.Table, results: Results
) -> Iterator[Remark]:
    """Nulls stand where the status says, and nowhere else: in attributions, their sum, the gap and
    the reason.
    """
    there = results.rows.attributed
    columns = [n for n in rebuilt.column_names if n.startswith(PREFIX)] + ["attribution_sum", "gap"]
    wrong = {n: pc.is_valid(table[n]).to_numpy() != there for n in columns}
    wrong |= {n: there & ~pc.is_valid(table[n]).to_numpy() for n in ("f_input", "f_baseline")}
    silent = np.array([s in _SILENT for s in results.rows.status], bool)
    wrong["reason"] = pc.is_valid(table["reason"]).to_numpy() == silent
    for name, rows in wrong.items():
        if rows.any():
            row = int(rows.argmax())
            status, value = results.rows.status[row], table[name][row].as_py()
            yield Finding(
                f"{where} column {name}",
                "null where the status says so, and nowhere else",
                f"status {status} beside {value!r} in row {row}; {int(rows.sum())} rows",
            )


def _sum_remarks(
    where: str, table: pa.Table, rebuilt: pa.Table, results: Results
) -> Iterator[Remark]:
    """attribution_sum is the sum of the stored attributions, and gap what is left of f(x) − f(x'),
    up to rounding.
    """
    told, total = table["attribution_sum"].to_numpy(), rebuilt["attribution_sum"].to_numpy()
    size, count = _magnitudes(results)
    with np.errstate(invalid="ignore"):  # rows without attributions may have any f
        ends = results.rows.f_input - results.rows.f_baseline
    double = (
        (count + 4)
        * np.finfo(np.float64).eps
        * (size + np.abs(results.rows.f_input) + np.abs(results.rows.f_baseline))
    )
    single = (
        max(np.finfo(a.dtype).eps for a in results.rows.attributions) * size
        + np.finfo(np.float32).tiny * count
    )
    # the gap was taken before the attributions were rounded to the type of their columns
    checks = {
        "attribution_sum": (told - total, double),
        "gap": (results.rows.gap - (told - ends), double + single),
    }
    for name, (off, allowed) in checks.items():
        rows = results.rows.attributed & ~(np.abs(off) <= allowed)
        if rows.any():
            row = int(rows.argmax())
            yield Finding(
                f"{where} column {name}",
                "what the row's other columns amount to, up to rounding",
                f"{table[name][row].as_py()!r} in row {row}, off by {off[row]:.3g};"
                f" {int(rows.sum())} rows",
            )


def _magnitudes(results: Results) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ|attribution| of each row, and how many attributions it has at most."""
    flat = [np.abs(a.reshape(len(a), -1)).astype(np.float64) for a in results.rows.attributions]
    return np.sum([a.sum(1) for a in flat], axis=0), np.full(
        len(results.rows.status), sum(a.shape[1] for a in flat), float
    )


def _target_remarks(where: str, plan: Plan, results: Results) -> Iterator[Remark]:
    times, targets = plan.targets_per_row, results.target.to_pylist()
    expected = _planned_targets(plan)
    if expected is not None and targets != expected * (len(targets) // times):
        row = next(i for i, t in enumerate(targets) if t != expected[i % times])
        yield Finding(
            f"{where} column target", f"{expected[row % times]!r} in row {row}", repr(targets[row])
        )
    pairs = [(i // times, t) for i, t in enumerate(targets) if t is not None]
    if len(set(pairs)) < len(pairs):
        yield Finding(
            f"{where} column target",
            "each target of a row once",
            f"{len(pairs) - len(set(pairs))} twice",
        )


def _planned_targets(plan: Plan) -> list[object] | None:
    """The targets of each input row; None where the rows or the model choose them."""
    places = plan.spec.target.places(plan.numerics.outputs)
    return None if places is None else list(repeated_targets(places, len(places)).to_pylist())


def _byte_remarks(where: str, stored: Stored, data: bytes) -> Iterator[Remark]:
    """The same rows and footer, written again, are the same bytes: so is what lies outside of
    pages, statistics and all.
    """
    unchecked = "bytes outside of pages"
    if stored.footer.versions.get("pyarrow") != version("pyarrow"):
        yield Unchecked(unchecked, "another version of pyarrow wrote them than is here")
        return
    told = {
        key: stored.metadata[key] for key in (FOOTER_KEY, CHECKSUM_KEY) if key in stored.metadata
    }
    again = write_parquet(stored.table, told, stored.group_rows)
    schema = open_parquet(pa.BufferReader(again)).metadata.metadata[_ARROW_SCHEMA.encode()].decode()
    # no flipped bit does that, another zstd may
    if len(again) != len(data) and schema == stored.arrow_schema:
        yield Unchecked(unchecked, "another build of pyarrow wrote them than is here")
    elif again != data:
        yield Finding(where, "the bytes that its rows and its footer are written as", "others")


def _differ(seen: pa.Array, expected: pa.Array) -> NDArray[np.bool_]:
    same = pc.fill_null(pc.equal(seen, expected), False)
    both = pc.and_(pc.is_null(seen), pc.is_null(expected))
    return ~np.asarray(pc.or_(same, both))


def _alike(told: Quantiles, seen: Quantiles) -> bool:
    pairs = [(getattr(told, n), getattr(seen, n)) for n in Quantiles.model_fields]
    return all(
        a == b or (a is not None and b is not None and np.isclose(a, b, rtol=1e-12))
        for a, b in pairs
    )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "nothing"
