"""Source files as a plan has them."""

from __future__ import annotations

from pathlib import Path

from integrand.schemas.records import Slice, SourceFile
from integrand.schemas.uris import Uri
from integrand.workers.data.inspection import inspect_file
from integrand.workers.storage.store import Store


def inspected(place: Path) -> SourceFile:
    return inspect_file(Store(), Store().info(Uri("file", str(place))), place.name)[0]


def whole(file: SourceFile) -> list[Slice]:
    return [Slice(file=0, start=0, stop=file.rows)]
