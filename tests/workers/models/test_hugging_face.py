"""Hugging Face models out of local folders, against transformers itself and Captum's own class."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import at_embedding
from integrand.workers.models.hugging_face import (
    hf_causal_lm,
    hf_continuation,
    hf_sequence_classifier,
)

transformers = pytest.importorskip("transformers")
STEPS = 20
GAUSS = FixedSteps(kind="fixed", rule="gauss_legendre", steps=STEPS)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output embeddings are tied to its word embeddings: safetensors hold them once."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so small by default that attributions say nothing
            parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


def ids_and_mask(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 30, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def test_a_classifier_gives_the_logits_of_transformers(classifier: Path) -> None:
    ids, mask = ids_and_mask(7, 4)
    types = (torch.arange(7) > 2).long().expand(2, 7)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    module = hf_sequence_classifier(str(classifier))
    with torch.no_grad():
        plain = own(input_ids=ids, attention_mask=mask).logits
        typed = own(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        torch.testing.assert_close(module(ids, mask), plain)
        torch.testing.assert_close(module(ids, mask, types), typed)


def test_a_language_model_with_tied_weights_gives_the_next_tokens_logits(
    language_model: Path,
) -> None:
    ids, mask = ids_and_mask(7, 4)
    own = transformers.AutoModelForCausalLM.from_pretrained(language_model).eval()
    module = hf_causal_lm(str(language_model))
    with torch.no_grad():
        logits = own(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(module(ids, mask), torch.stack([logits[0, 6], logits[1, 3]]))
        alone = own(input_ids=ids[1:, :4]).logits[0, -1]
        torch.testing.assert_close(module(ids, mask)[1], alone)


@pytest.mark.parametrize("mean", [False, True])
def test_a_continuation_is_as_likely_as_its_tokens_one_by_one(
    language_model: Path, mean: bool
) -> None:
    ids, mask = ids_and_mask(36, 30)
    marked = torch.zeros_like(ids)
    marked[0, 30:36] = 1
    marked[1, 3:30] = 1
    own = transformers.AutoModelForCausalLM.from_pretrained(language_model).eval()
    module = hf_continuation(str(language_model), mean)
    expected = []
    for row in range(2):
        total = 0.0
        for place in marked[row].nonzero().flatten().tolist():
            with torch.no_grad():
                logits = own(input_ids=ids[row : row + 1, :place]).logits[0, -1]
            total += float(logits.log_softmax(-1)[ids[row, place]])
        expected.append(total / (int(marked[row].sum()) if mean else 1))
    with torch.no_grad():
        found = module(ids, mask, marked)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


class Tokens:
    """What Captum asks of a tokenizer, over numbers as words."""

    def encode(self, text: str, return_tensors: str | None = None, **_: Any) -> Any:
        ids = [int(word) for word in text.split()]
        return torch.tensor([ids]) if return_tensors == "pt" else ids

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, torch.as_tensor(ids).reshape(-1).tolist()))

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [str(int(one)) for one in torch.as_tensor(ids).reshape(-1)]

    def __call__(self, text: str, return_tensors: str | None = None, **_: Any) -> dict[str, Any]:
        ends = [match.span() for match in re.finditer(r"\S+", text)]
        return {"input_ids": self.encode(text, return_tensors), "offset_mapping": ends}


def test_one_pass_for_a_whole_response_equals_captums_class_with_one_for_each_token(
    language_model: Path,
) -> None:
    attr = pytest.importorskip("captum.attr")
    prompt, response = [3, 8, 5, 12, 9, 4], [7, 11, 2, 6, 20]
    own = transformers.AutoModelForCausalLM.from_pretrained(language_model).eval().double()
    calls = {"captum": 0, "ours": 0}
    counted = own.register_forward_hook(lambda *_: calls.update(captum=calls["captum"] + 1))
    layer = attr.LayerIntegratedGradients(own, own.transformer.wte)
    theirs = attr.LLMGradientAttribution(layer, Tokens()).attribute(
        attr.TextTokenInput(" ".join(map(str, prompt)), Tokens(), baselines=0),
        target=" ".join(map(str, response)),
        n_steps=STEPS,
        method="gausslegendre",
        internal_batch_size=1,
    )
    counted.remove()
    module = hf_continuation(str(language_model)).double()
    ids = torch.tensor([prompt + response])
    mask, marked = torch.ones_like(ids), torch.zeros_like(ids)
    marked[:, len(prompt) :] = 1
    absent = ids * marked
    lookup, forward = at_embedding(module, "model.transformer.wte")
    points, baselines = lookup(ids, mask, marked), lookup(absent, mask, marked)
    transformer = module.model.transformer
    handle = transformer.register_forward_hook(
        lambda _, __, out: calls.update(ours=calls["ours"] + len(out.last_hidden_state))
    )
    result = attribute(
        forward,
        points,
        baselines=baselines,
        forward_args=(ids, mask, marked),
        accuracy=GAUSS,
        batch_rows=1,
    )
    handle.remove()
    found = result.attributions.sum(-1)[0]
    assert found[len(prompt) :].abs().max() == 0
    np.testing.assert_allclose(found[: len(prompt)], theirs.seq_attr, atol=1e-4)
    assert calls["captum"] >= 0.8 * len(response) * calls["ours"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"a folder with a config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"weights as \*\.safetensors"),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps(
                    json.loads((folder / "config.json").read_text()) | {"auto_map": {"a": 1}}
                )
            ),
            "code of its own",
        ),
    ],
)
def test_folders_that_hold_no_model(
    classifier: Path, tmp_path: Path, change: Any, said: str
) -> None:
    for file in classifier.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    with pytest.raises(SpecError, match=said):
        hf_sequence_classifier(str(tmp_path))
