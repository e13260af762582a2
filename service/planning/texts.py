"""Inputs of texts, settled: their tokenizers read and pinned, and what the spec names of them."""

from __future__ import annotations

from torch import nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import (
    AverageBaseline,
    BaselinePart,
    PadBaseline,
    TokenBaseline,
)
from integrand.schemas.specs.inputs import TextInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.data.tokenizing import (
    Tokenizer,
    planned_tokenizer,
    read_tokenizer,
    tokenizer_file,
)
from integrand.workers.models.embeddings import find_modules
from integrand.workers.storage.store import Store


def settle_texts(store: Store, spec: AttributeSpec, base: str) -> AttributeSpec:
    """The spec with each tokenizer where workers will see it, its digest, the id that it pads with,
    and the ids of tokens that are baselines. Raises DataError, SpecError or IntegrityError for a
    tokenizer that is none, is not installed, or is another one than the spec says.
    """
    if not spec.texts:
        return spec
    inputs = [
        _settled(store, one, base) if isinstance(one, TextInput) else one for one in spec.inputs
    ]
    return spec.model_copy(update={"inputs": tuple(inputs)})


def _settled(store: Store, part: TextInput, base: str) -> TextInput:
    tokenizer, sha256 = read_tokenizer(store, part, base)
    pad = tokenizer.pad if part.pad is None else part.pad
    update: dict[str, object] = {
        "tokenizer": str(tokenizer_file(store, part.tokenizer, base)),
        "tokenizer_sha256": sha256,
        "pad": pad,
    }
    if part.baseline is not None:
        update["baseline"] = _known(part, tokenizer, pad, part.baseline)
    return part.model_copy(update=update)


def _known(
    part: TextInput, tokenizer: Tokenizer, pad: int | None, baseline: BaselinePart
) -> BaselinePart:
    """A baseline with the ids of its tokens."""
    where = f"baseline of input `{part.name}`"
    if isinstance(baseline, AverageBaseline):
        members = [_known(part, tokenizer, pad, member) for member in baseline.of]
        return baseline.model_copy(update={"of": tuple(members)})
    if isinstance(baseline, PadBaseline) and pad is None:
        raise SpecError(
            where,
            expected="a tokenizer that says what it pads with",
            seen="one that does not",
            next_step=f"give inputs.{part.name}.pad, an id, or choose another baseline",
        )
    if not isinstance(baseline, TokenBaseline):
        return baseline
    found = tokenizer.whole.token_to_id(baseline.token)
    if found is None or baseline.id not in (None, found):
        raise SpecError(
            where,
            expected="a token of the vocabulary" if found is None else f"id {found}",
            seen=repr(baseline.token) if found is None else f"id {baseline.id}",
            next_step="name it as the tokenizer does, such as [MASK], <mask>, [PAD] or [UNK]",
        )
    return baseline.model_copy(update={"id": found})


def check_vocabularies(store: Store, spec: AttributeSpec, model: object) -> None:
    """SpecError for a tokenizer with ids that the module does not embed, and for such a `pad`."""
    for part in spec.texts:
        if not isinstance(model, nn.Module):
            continue
        tokenizer = planned_tokenizer(store, part)
        for name, module in find_modules(model, part.modules).items():
            if not isinstance(module, nn.Embedding):
                continue
            _check_size(part, tokenizer, name, module.num_embeddings)


def _check_size(part: TextInput, tokenizer: Tokenizer, name: str, rows: int) -> None:
    if tokenizer.ids > rows:
        raise SpecError(
            f"inputs.{part.name}.tokenizer {part.tokenizer}",
            expected=f"at most {rows:,} ids, as `{name}` embeds",
            seen=f"{tokenizer.ids:,}",
            next_step="take the tokenizer that the model was trained with",
        )
    if part.pad is not None and part.pad >= rows:
        raise SpecError(
            f"inputs.{part.name}.pad",
            expected=f"an id from 0 to {rows - 1}, as `{name}` embeds",
            seen=str(part.pad),
            next_step="give the id of a token that the model knows",
        )
