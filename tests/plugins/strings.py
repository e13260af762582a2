"""Jobs over strings: a tokenizer of a few word pieces, reviews, and the transformer of
`tests.plugins.texts` over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.plugins.jobs import JobFolder
from tests.plugins.texts import GAUSS, MODELS

PIECES = """
[PAD] [UNK] [CLS] [SEP] [MASK] a film is this great bad play ##ed ##ing ##s un ##like ##ly
don ' t , . ! the
"""
VOCABULARY = tuple(PIECES.split())
REVIEWS = [
    "This film is great!",
    "bad, bad film",
    "Unlikely plays; the film is playing.",
    "don't",
    "",
    None,
    "   ",
    " ".join(["the"] * 16),
    "grüße  the film",
]

TOKENS = {
    "name": "tokens",
    "text": "review",
    "tokenizer": "tokenizer",
    "embedding": "words",
    "max_length": 16,
}
MASK = {"name": "mask", "mask_of": "tokens", "dtype": "int64"}


def tokenizer() -> Any:
    """BERT's rules over VOCABULARY."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def write_tokenizer(folder: Path, made: Any = None) -> Path:
    place = folder / "tokenizer.json"
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text((made or tokenizer()).to_str())
    return place


@pytest.fixture
def strings(job: JobFolder) -> JobFolder:
    """REVIEWS, with a tokenizer in `tokenizer/` and a model of 30 ids."""
    pytest.importorskip("tokenizers")
    (job.path / f"{job.module}.py").write_text(MODELS)
    (job.path / "data" / "rows.parquet").unlink()
    write_tokenizer(job.path / "tokenizer")
    job.write_table("rows.parquet", reviews_table(REVIEWS))
    return job


def reviews_table(texts: list[str | None]) -> pa.Table:
    return pa.table({"id": np.arange(len(texts)), "review": pa.array(texts, pa.string())})


def string_fields(**changes: Any) -> dict[str, Any]:
    return {
        "inputs": [TOKENS],
        "forward_args": [MASK],
        "accuracy": GAUSS,
        "target": {"kind": "index", "index": 2},
        "compute": {"shard_rows": 5, "precision": "float64"},
    } | changes
