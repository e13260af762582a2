"""A source made ready to plan: Parquet as it lies, CSV and JSON lines split first, statistics
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from integrand.schemas.records import PrepassFile, SourceFile
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.uris import Uri
from integrand.service.planning.sources import Listing, list_source, read_footers
from integrand.service.pools.base import Mapper
from integrand.workers.data.columns import declared_columns
from integrand.workers.data.formats.base import TextFormat
from integrand.workers.data.formats.images import Images
from integrand.workers.data.formats.table import FORMATS
from integrand.workers.data.ingest import (
    IngestTask,
    estimate_rows,
    head,
    ingest,
    ingest_digest,
    load_ingested,
)
from integrand.workers.data.merging import source_schema
from integrand.workers.data.picture_files import (
    HEAD_ROWS,
    content_digest,
    ingest_pictures,
    labelled,
    pictures_digest,
    read_labels,
    table_of,
)
from integrand.workers.data.prepasses.base import (
    Arrays,
    PrePass,
    Scan,
    place_of,
    read_arrays,
    stored_arrays,
    write_arrays,
)
from integrand.workers.data.roles import Roles, roles_of
from integrand.workers.storage.store import Store

LONG_HEAD = 100_000
"""Lines of a text file that are looked at before it is split; fewer of long ones."""

GROUPS_AT_ONCE = 128
"""Row groups whose partials a pre-pass sends before they are added up."""


Identity = tuple[tuple[str, int, str], ...]
"""Path, size and version of each file, or of many as one."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """What is planned over; `split` from text, for which `head` and `estimated_rows` stand in
    before that is done.

    longer  reads on, file after file, where no row of the head is usable
    """

    files: tuple[SourceFile, ...]
    schema: pa.Schema
    identity: Identity
    head: pa.Table | None = None
    estimated_rows: int = 0
    split: bool = False
    longer: Callable[[], Iterator[pa.Table]] | None = None

    @property
    def estimated(self) -> bool:
        return self.head is not None


def prepare_dataset(
    store: Store, spec: AttributeSpec, base: str, output: Uri, pool: Mapper, *, ingest: bool
) -> Dataset:
    """List the source and read its footers; a text source is split first, or only sampled without
    `ingest`.
    """
    listing = list_source(store, spec.source, base)
    if isinstance(listing.format, TextFormat):
        return _text_dataset(store, spec, listing, output, pool, ingest)
    if isinstance(listing.format, Images):
        return _picture_dataset(store, spec, listing, base, output, pool, ingest)
    files, schemas = read_footers(store, listing)
    schema = source_schema(files, schemas, declared_columns(spec))
    identity = tuple((f.path, f.size, f.fingerprint) for f in files)
    return Dataset(files, schema, identity)


def _text_dataset(
    store: Store,
    spec: AttributeSpec,
    listing: Listing,
    output: Uri,
    pool: Mapper,
    split: bool,
) -> Dataset:
    roles = roles_of(spec)
    form = listing.format.name
    entries = [entry for entry, _ in listing.files]
    folder = output.child("_ingest", ingest_digest(entries, roles))
    identity = tuple((path, e.size, e.etag or f"mtime:{e.mtime_ns}") for e, path in listing.files)
    if not split and load_ingested(store, folder) is None:
        first, path = listing.files[0]
        sample = head(store, first, path, form, roles)
        rows = sum(estimate_rows(store, entry, form) for entry in entries)
        return Dataset(
            (),
            sample.schema,
            identity,
            sample,
            rows,
            split=True,
            longer=partial(_heads, store, listing, roles),
        )
    tasks = [IngestTask(e, path, form, folder, roles) for e, path in listing.files]
    pieces = ingest(store, tasks, pool.map)
    return _of_pieces(store, spec, pieces, identity)


def _of_pieces(
    store: Store, spec: AttributeSpec, pieces: tuple[SourceFile, ...], identity: Identity
) -> Dataset:
    files = tuple((store.info(store.parse(p.uri)), p.path) for p in pieces)
    _, schemas = read_footers(store, Listing(FORMATS["parquet"], files))
    schema = source_schema(pieces, schemas, declared_columns(spec))
    return Dataset(pieces, schema, identity, split=True)


def _picture_dataset(
    store: Store,
    spec: AttributeSpec,
    listing: Listing,
    base: str,
    output: Uri,
    pool: Mapper,
    split: bool,
) -> Dataset:
    """Without `split` some pictures stand for all; the run is named by one digest of all."""
    paths = [path for _, path in listing.files]
    place = spec.source.labels
    labels = None if place is None else read_labels(store, store.parse(place, base), paths)
    pictures = labelled(listing.files, labels)
    digest = pictures_digest(pictures)
    folder = output.child("_ingest", digest)
    identity = (("pictures", len(pictures), content_digest(pictures)),)
    if split or load_ingested(store, folder) is not None:
        pieces = ingest_pictures(store, pictures, folder, pool.map)
        return _of_pieces(store, spec, pieces, identity)
    sample = table_of(store, pictures[:HEAD_ROWS])
    return Dataset((), sample.schema, identity, sample, len(pictures), split=True)


def _heads(store: Store, listing: Listing, roles: Roles) -> Iterator[pa.Table]:
    """The first lines of every file, as ingest would store them."""
    for entry, path in listing.files:
        yield head(store, entry, path, listing.format.name, roles, LONG_HEAD)


def run_prepass(
    prepass: PrePass[Any], scan: Scan, output: Uri, pool: Mapper
) -> tuple[Arrays, PrepassFile]:
    """What a pre-pass finds over the clean rows, counted once per dataset and kept under
    `_ingest/`.
    """
    store = scan.store
    place = place_of(prepass, output, scan)
    if store.exists(place):
        stored = stored_arrays(store, place)
    else:
        stored = write_arrays(store, place, _found(prepass, scan, pool))
    found = read_arrays(store, place, stored.sha256)
    prepass.check(found, scan.shapes)
    return found, stored


def _found(prepass: PrePass[Any], scan: Scan, pool: Mapper) -> Arrays:
    """What it finds in the end, over the data as often as it must go."""
    found: Arrays | PrePass[Any] = prepass
    every = scan.groups
    while isinstance(found, PrePass):
        partials: list[Any] = []
        for first in range(0, len(every), GROUPS_AT_ONCE):
            groups = every[first : first + GROUPS_AT_ONCE]
            partials += pool.map(partial(_of_group, found, scan), groups)
            partials = list(found.condensed(partials))
        found = found.merge(partials)
    return found


def _of_group(prepass: PrePass[Any], scan: Scan, group: tuple[int, int]) -> Any:
    return prepass.partial(scan, *group)
