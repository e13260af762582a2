"""Formats are found by name, extension and first bytes, and say what they are in words."""

from __future__ import annotations

from typing import get_args

import pytest

from integrand.schemas.specs.source import FormatName, Source
from integrand.workers.data.formats.table import FORMATS, identify
from integrand.workers.data.signatures import Known


def test_every_format_of_the_spec_is_listed_under_its_name() -> None:
    assert tuple(FORMATS) == get_args(FormatName)
    assert all(form.name == name for name, form in FORMATS.items())


def test_no_extension_names_two_formats_and_the_spec_tells_all() -> None:
    extensions = [e for form in FORMATS.values() for e in form.extensions]
    assert len(set(extensions)) == len(extensions)
    assert f"({' '.join(extensions)})" in str(Source.model_fields["format"].description)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x1f\x8b\x08", "a gzip-compressed file"),
        ("\ufeffid,a\n".encode("utf-16-le"), "text in UTF-16"),
        ("id,a\n1,2\n".encode("utf-16-be"), "text in UTF-16"),
        (b"\xef\xbb\xbf  <!DOCTYPE html>", "HTML or XML"),
    ],
)
def test_other_files_are_known_by_their_first_bytes(head: bytes, name: str) -> None:
    found = identify(head)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("head", [b"", b"id,a\n1,2\n", b'{"id": 1}\n', "ä,ö\n".encode()])
def test_text_is_no_other_file(head: bytes) -> None:
    assert identify(head) is None


def test_a_format_read_as_another_is_named_with_a_way_out() -> None:
    assert identify(b"PAR1") == Known(
        "a Parquet file", "name it .parquet, or set source.format: parquet"
    )
