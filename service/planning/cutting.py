"""Cutting source files into shards: over row groups, big groups cut inside, tiny files packed
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from integrand.schemas.errors import SpecError
from integrand.schemas.ids import shard_id
from integrand.schemas.records import Shard, Slice, SourceFile

OUTPUT_BYTES = 128 << 20
SECONDS = 120.0
SHARDS_PER_WORKER = 4
SHORTEST_S = 2.0
MOST_SHARDS = 1_000_000
"""A footer of some hundred bytes may claim any number of rows."""


def cut(files: Sequence[SourceFile], rows: int) -> tuple[Shard, ...]:
    """Shards of at most `rows` rows that together cover every row once, in file order. SpecError
    for too many.
    """
    least = -(-sum(file.rows for file in files) // rows)
    if least > MOST_SHARDS:
        raise SpecError(
            "compute.shard_rows",
            expected=f"at most {MOST_SHARDS} shards",
            seen=f"{least} of {rows} rows",
            next_step="set a larger compute.shard_rows, or narrow source.uri",
        )
    packed = _pack(_pieces(files, rows), rows)
    return tuple(Shard(id=shard_id(i), slices=_merge(slices)) for i, slices in enumerate(packed))


def _pieces(files: Sequence[SourceFile], rows: int) -> Iterator[Slice]:
    """Row groups in order; a group above `rows` in nearly equal parts."""
    for number, file in enumerate(files):
        start = 0
        for count in file.row_groups:
            parts = -(-count // rows)
            for part in range(parts):
                first = start + count * part // parts
                stop = start + count * (part + 1) // parts
                yield Slice(file=number, start=first, stop=stop)
            start += count


def _pack(pieces: Iterable[Slice], rows: int) -> Iterator[list[Slice]]:
    """Consecutive pieces together while they stay within `rows`."""
    held: list[Slice] = []
    count = 0
    for piece in pieces:
        if held and count + piece.rows > rows:
            yield held
            held, count = [], 0
        held.append(piece)
        count += piece.rows
    if held:
        yield held


def _merge(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Adjacent slices of one file as one."""
    merged: list[Slice] = []
    for s in slices:
        last = merged[-1] if merged else None
        if last is not None and last.file == s.file and last.stop == s.start:
            merged[-1] = Slice(file=s.file, start=last.start, stop=s.stop)
        else:
            merged.append(s)
    return tuple(merged)


def check_decoded(shards: Sequence[Shard], row_bytes: int, most: int) -> None:
    """Raise SpecError for a shard whose rows would take more than `most` bytes once they are
    decoded.
    """
    largest = max((shard.rows for shard in shards), default=0)
    if largest * row_bytes > most:
        raise SpecError(
            "compute.shard_rows",
            expected=f"shards that decode to at most {most} bytes",
            seen=f"{largest} rows × {row_bytes} bytes",
            next_step=(
                f"compute: {{shard_rows: {max(1, most // row_bytes)}}}, or a larger decoded_bytes"
                " in the operator's config"
            ),
        )


def rows_by_bytes(files: Sequence[SourceFile], shard_bytes: int) -> int:
    """Rows whose stored input takes about `shard_bytes`."""
    stored = sum(f.size for f in files)
    rows = sum(f.rows for f in files)
    row_bytes = max(1.0, stored / max(1, rows))
    return max(1, int(shard_bytes / row_bytes))


def auto_rows(total: int, workers: int, output_row_bytes: int, row_s: float) -> int:
    """Rows that keep a shard's output under 128 MB and its projected time under 120 s.

    A small job is cut finer, so that every worker has several shards, but not below about 2 s each:
    a shard costs a dispatch, a create and a footer.
    """
    row_s = max(row_s, 1e-9)
    by_bytes = OUTPUT_BYTES // max(1, output_row_bytes)
    by_time = int(SECONDS / row_s)
    fair = -(-total // (SHARDS_PER_WORKER * workers))
    shortest = int(SHORTEST_S / row_s)
    rows = min(by_bytes, by_time, max(fair, shortest))
    return max(1, rows)
