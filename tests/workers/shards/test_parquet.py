"""A shard's bytes: the same pages for the same rows, every one with a checksum."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from integrand.workers.shards.job import Job
from tests.plugins.results import encoded, made_results


def test_the_same_rows_give_the_same_pages(job: Job) -> None:
    """Timings lie in the footer, whose length is written 8 bytes before the end."""
    first = encoded(job, made_results(40))
    second = encoded(job, made_results(40), seconds=12345.678)
    pages = [data[: -8 - int.from_bytes(data[-8:-4], "little")] for data in (first, second)]
    assert pages[0] == pages[1]
    assert first != second


def test_a_flipped_byte_in_any_column_is_caught(job: Job) -> None:
    data = encoded(job, made_results(40))
    columns = pq.read_metadata(io.BytesIO(data)).row_group(0)
    for i in range(columns.num_columns):
        column = columns.column(i)
        start = (
            column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        )
        broken = bytearray(data)
        broken[start + column.total_compressed_size - 1] ^= 1
        with pytest.raises(OSError, match=r"[Cc]hecksum|CRC"):
            pq.read_table(io.BytesIO(bytes(broken)), page_checksum_verification=True)
    pq.read_table(io.BytesIO(data), page_checksum_verification=True)
