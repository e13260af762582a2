"""Hugging Face models out of a local folder, as factories: `integrand.workers.models.hugging_face:
hf_sequence_classifier` and its siblings, each with the argument `folder`. They are code like
that of any factory: the operator trusts them by this name.

A folder holds what `save_pretrained` writes: config.json and safetensors. Nothing is fetched, and
no code that comes with a model is run. `transformers` builds the module, tied weights included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from integrand.schemas.errors import SpecError

Head = Literal["AutoModelForSequenceClassification", "AutoModelForCausalLM"]

_POSITIONS = 32
"""Places of a sequence whose logits are there at once."""


def hf_sequence_classifier(folder: str) -> nn.Module:
    """A classifier of texts: `(ids, mask)` or `(ids, mask, types)` → logits `[rows, labels]`. Its
    word embeddings are, of BERT, `model.bert.embeddings.word_embeddings`.

    Raises SpecError for a folder that holds none, and without `transformers`.
    """
    return Classifier(_load(folder, "AutoModelForSequenceClassification")).eval()


def hf_causal_lm(folder: str) -> nn.Module:
    """A causal language model at the end of its texts: `(ids, mask)` → logits of the token that
    comes next, `[rows, vocabulary]`. Its embeddings are, of Llama, `model.model.embed_tokens`.

    Raises SpecError like `hf_sequence_classifier`, and for a model whose logits are not what its
    output embeddings make of its last hidden states.
    """
    return NextToken(_causal(folder)).eval()


def hf_continuation(folder: str, mean: bool = False) -> nn.Module:
    """How likely a causal language model finds the marked tokens of texts: `(ids, mask, marked)` →
    Σ_t log p(id_t | ids before it) over the places that are marked with 1, `[rows]` in nats; with
    `mean` that divided by their number.

    The gradient is linear: one backward pass gives what a pass for each token would add up to.
    Raises SpecError like `hf_causal_lm`.
    """
    return Continuation(_causal(folder), mean).eval()


class Classifier(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        others = {} if types is None else {"token_type_ids": types}
        found: Tensor = self.model(input_ids=ids, attention_mask=mask, **others).logits
        return found


class NextToken(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        last = mask.long().sum(1) - 1
        states = _states(self.model, ids, mask)
        rows = torch.arange(len(ids), device=ids.device)
        return _logits(self.model, states[rows, last])


class Continuation(nn.Module):
    def __init__(self, model: nn.Module, mean: bool) -> None:
        super().__init__()
        self.model, self.mean = model, mean

    def forward(self, ids: Tensor, mask: Tensor, marked: Tensor) -> Tensor:
        states, following = _states(self.model, ids, mask)[:, :-1], ids[:, 1:]
        weight = marked[:, 1:].to(states.dtype)
        total = states.new_zeros(len(ids))
        for start in range(0, following.shape[1], _POSITIONS):
            part = slice(start, start + _POSITIONS)
            if bool(weight[:, part].any()):
                # made again on the way back: logits of all places would be most of the memory
                likely = checkpoint(
                    self._likely, states[:, part], following[:, part], use_reentrant=False
                )
                total = total + (likely * weight[:, part]).sum(1)
        return total / weight.sum(1).clamp(min=1) if self.mean else total

    def _likely(self, states: Tensor, following: Tensor) -> Tensor:
        """log p of each token after its state."""
        told = _logits(self.model, states).log_softmax(-1)
        return told.gather(-1, following[..., None])[..., 0]


# --- loading -------------------------------------------------------------------------------------


def _load(folder: str, head: Head) -> nn.Module:
    place = Path(folder)
    config = _config(place)
    if config.get("auto_map"):
        raise _refused(folder, "a model of transformers itself", "`auto_map`: code of its own")
    if not list(place.glob("*.safetensors")):
        raise _refused(folder, "weights as *.safetensors", "none")
    try:
        import transformers
    except ImportError:
        raise SpecError(
            f"model {folder}",
            expected="the package `transformers`",
            seen="it is not installed",
            next_step="pip install 'integrand[transformers]', here and on the workers",
        ) from None
    # eager attention: its kernels are plain products, whose rows do not depend on each other
    model, told = getattr(transformers, head).from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = sorted(told["missing_keys"])
    if missing:
        raise _refused(folder, f"weights for all of {type(model).__name__}", f"no {missing[0]}")
    model.config.use_cache = False
    return cast(nn.Module, model.eval())


def _config(place: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((place / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise _refused(str(place), "a folder with a config.json", str(error)) from error
    return found


def _refused(folder: str, expected: str, seen: str) -> SpecError:
    return SpecError(
        f"model {folder}",
        expected=expected,
        seen=seen,
        next_step="save it with save_pretrained(folder), and name that folder by its whole path",
    )


def _causal(folder: str) -> nn.Module:
    model = _load(folder, "AutoModelForCausalLM")
    ids = torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ours = _logits(model, _states(model, ids, torch.ones_like(ids)))
    if not torch.allclose(own, ours, rtol=1e-4, atol=1e-4):
        raise SpecError(
            f"model {folder}",
            expected="logits that are the output embeddings of the last hidden states",
            seen=f"others in {type(model).__name__}, which scales or caps them",
            next_step="wrap it in a factory of your own",
        )
    return model


def _states(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states, `[rows, length, width]`."""
    body = cast(Any, model).base_model
    found: Tensor = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return found


def _logits(model: nn.Module, states: Tensor) -> Tensor:
    found: Tensor = cast(Any, model).get_output_embeddings()(states)
    return found
