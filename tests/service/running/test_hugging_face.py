"""Whole jobs over Hugging Face models in local folders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import parse_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.workers.models.hugging_face import hf_continuation
from tests.plugins.jobs import JobFolder
from tests.plugins.strings import MASK, REVIEWS, TOKENS, string_fields

transformers = pytest.importorskip("transformers")
FACTORIES = "integrand.workers.models.hugging_face"


def run(job: JobFolder, factory: str, **changes: Any) -> RunManifest:
    model = {
        "kind": "factory",
        "entrypoint": f"{FACTORIES}:{factory}",
        "arguments": {"folder": str(job.path / "model")},
    }
    fields = job.fields(**string_fields(model=model, **changes))
    return run_job(
        parse_spec(fields),
        base=str(job.path),
        operator=Operator(trusted=(FACTORIES,)),
        cluster=Cluster("local"),
    )


def test_a_classifier_of_strings(strings: JobFolder) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        initializer_range=0.5,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(strings.path / "model")
    tokens = TOKENS | {
        "embedding": "model.bert.embeddings.word_embeddings",
        "baseline": {"kind": "token", "token": "[MASK]"},
    }
    types = {"name": "types", "types_of": "tokens", "dtype": "int64"}
    rows = strings.rows(
        run(
            strings,
            "hf_sequence_classifier",
            inputs=[tokens],
            forward_args=[MASK, types],
            accuracy={"kind": "adaptive"},
        )
    )
    clean = rows["reason"].isna() | rows["status"].isin(["at_precision_floor"])
    assert rows["status"][clean].isin(["ok", "at_precision_floor"]).all()
    assert (
        clean.sum() == sum(text is not None and "film" in text for text in REVIEWS) + 1
    )  # and `don't`
    assert (rows["gap"][clean].abs() < 1e-2).all()


def test_a_response_to_a_prompt_is_explained_as_a_whole(strings: JobFolder) -> None:
    """The response stands in the baseline too, and is credited with nothing."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=40, initializer_range=0.3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(strings.path / "model")
    prompts, responses = [[3, 4, 5], [6, 7, 8, 9]], [[10, 11], [12, 13, 14]]
    pairs = list(zip(prompts, responses, strict=True))
    lists = pa.list_(pa.int64())
    table = {
        "id": [0, 1],
        "ids": pa.array([p + r for p, r in pairs], lists),
        "absent": pa.array([[0] * len(p) + r for p, r in pairs], lists),
        "marked": pa.array([[0] * len(p) + [1] * len(r) for p, r in pairs], lists),
    }
    strings.write_table("rows.parquet", pa.table(table))
    tokens = {
        "name": "tokens",
        "ids": "ids",
        "embedding": "model.transformer.wte",
        "pad": 0,
        "baseline": {"kind": "column", "column": "absent"},
    }
    marked = {"name": "marked", "column": "marked", "dtype": "int64"}
    rows = strings.rows(
        run(
            strings,
            "hf_continuation",
            inputs=[tokens],
            forward_args=[MASK, marked],
            target={"kind": "scalar"},
        )
    )
    module = hf_continuation(str(strings.path / "model")).double()
    for row, (prompt, response) in enumerate(pairs):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            own = module(
                ids, torch.ones_like(ids), (torch.arange(len(ids[0])) >= len(prompt))[None]
            )
        np.testing.assert_allclose(rows["f_input"][row], own.item(), rtol=1e-9)
        credited = rows["attr.tokens"][row]
        assert (credited[len(prompt) :] == 0).all()
        assert (credited[: len(prompt)] != 0).all()
        assert abs(rows["gap"][row]) < 1e-4
