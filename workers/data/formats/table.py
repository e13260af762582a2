"""The formats of source files by name: a new one is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from integrand.schemas.specs.source import FormatName
from integrand.workers.data.formats.base import SourceFormat, TextFormat
from integrand.workers.data.formats.csv import Csv
from integrand.workers.data.formats.images import Images
from integrand.workers.data.formats.json_lines import JsonLines
from integrand.workers.data.formats.parquet import Parquet
from integrand.workers.data.signatures import Known, identify_foreign

FORMATS: Mapping[FormatName, SourceFormat] = MappingProxyType(
    {form.name: form for form in (Parquet(), Csv(), JsonLines(), Images())}
)


def text_format(name: FormatName) -> TextFormat:
    """The format of this name, one that is split into Parquet first."""
    form = FORMATS[name]
    assert isinstance(form, TextFormat), name
    return form


def format_by_extension(extension: str) -> SourceFormat | None:
    """The format whose files' names end so; None for files that are no data."""
    for form in FORMATS.values():
        if extension in form.extensions:
            return form
    return None


def identify(head: bytes) -> Known | None:
    """What these first bytes of a file are, and what to do with it; None for plain text and what is
    not known.
    """
    for form in FORMATS.values():
        if form.signature and head.startswith(form.signature):
            step = f"name it {form.extensions[0]}, or set source.format: {form.name}"
            return Known(f"a {form.title} file", step)
    return identify_foreign(head)
