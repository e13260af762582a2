"""Attribution at the output of named modules: closed forms, a peer, padding, and what is
refused.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import IdsModel, at_embedding, through_embeddings
from tests.toys import spec

F64 = torch.float64
GAUSS = FixedSteps(steps=24)


class Text(nn.Module):
    """Self-attention over token and position embeddings, masked mean, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 6), nn.Embedding(16, 6)
        self.query, self.key, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        scores = self.query(x) @ self.key(x).mT / math.sqrt(6)
        x = x + scores.masked_fill(mask[:, None, :] == 0, -math.inf).softmax(-1) @ x
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.last(torch.tanh(pooled))


class Table(nn.Module):
    """Two categories, a number and a pair of categories that have a module each."""

    def __init__(self) -> None:
        super().__init__()
        self.plan, self.region = nn.Embedding(5, 3), nn.Embedding(7, 4)
        self.pair = nn.ModuleList([nn.Embedding(4, 2), nn.Embedding(6, 3)])
        self.last = nn.Sequential(nn.Linear(14, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, plan: Tensor, amounts: Tensor, region: Tensor, pair: Tensor) -> Tensor:
        parts = [
            self.plan(plan),
            self.region(region),
            *(m(pair[:, i]) for i, m in enumerate(self.pair)),
            amounts,
        ]
        return self.last(torch.cat(parts, 1))


def made(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return kind().to(F64).eval().requires_grad_(False)


def texts(rows: int = 3, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 20, (rows, length), generator=generator), torch.ones(
        rows, length, dtype=torch.int64
    )


# --- tensors -----------------------------------------------------------------------------------


def test_a_linear_model_credits_each_element_exactly() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4, dtype=F64)

        def forward(self, ids: Tensor) -> Tensor:
            return (self.words(ids) * torch.arange(4)).sum((1, 2))

    model, ids = made(Linear), torch.tensor([[1, 2, 8], [3, 3, 0]])
    lookup, forward = at_embedding(model, "words")
    torch.testing.assert_close(lookup(ids), model.words.weight[ids], rtol=0, atol=0)
    found = attribute(forward, lookup(ids), forward_args=(ids,))
    torch.testing.assert_close(
        found.attributions, model.words.weight[ids] * torch.arange(4), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(found.f_input, model(ids))


def test_tokens_agree_with_the_peer() -> None:
    captum = pytest.importorskip("captum.attr")
    model, (ids, mask) = made(Text), texts()
    lookup, forward = at_embedding(model, "tokens")
    baseline = lookup(torch.full_like(ids, 7), mask)
    found = attribute(
        forward,
        lookup(ids, mask),
        baselines=baseline,
        target=1,
        forward_args=(ids, mask),
        accuracy=GAUSS,
    )
    peer = captum.LayerIntegratedGradients(model, model.tokens)
    expected = peer.attribute(
        ids, torch.full_like(ids, 7), target=1, additional_forward_args=(mask,), n_steps=24
    )
    # The peer takes its nodes and weights in float32.
    torch.testing.assert_close(found.attributions, expected, rtol=1e-6, atol=1e-8)


def test_a_model_may_add_to_its_embeddings_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(5, 3), nn.Embedding(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.one(ids)
            x += 1
            x *= self.other(ids)
            return x.sum(1)

    model, ids = made(InPlace), torch.tensor([1, 4])
    lookup, forward = at_embedding(model, "one", "other")
    embedded = lookup(ids)
    for values, weights in zip(embedded, (model.one.weight, model.other.weight), strict=True):
        torch.testing.assert_close(values, weights[ids], rtol=0, atol=0)
    found = attribute(forward, embedded, forward_args=(ids,), accuracy=GAUSS)
    a, b = embedded  # ∂/∂a (a + 1) b at αa, αb: ∫ αb dα = b / 2
    torch.testing.assert_close(
        found.attributions, (a * b / 2, b * (a / 2 + 1)), rtol=1e-12, atol=1e-13
    )


def test_several_modules_beside_numbers() -> None:
    model = made(Table)
    plan, region, pair = torch.tensor([0, 4]), torch.tensor([6, 1]), torch.tensor([[3, 5], [0, 0]])
    amounts = torch.tensor([[1.5, -2], [0.3, 4]], dtype=F64)
    names = ("plan", "region", "pair.0", "pair.1")
    lookup, forward = at_embedding(model, *names)
    embedded = lookup(plan, amounts, region, pair)
    assert [e.shape[1] for e in embedded] == [3, 4, 2, 3]
    found = attribute(
        lambda p, r, a, b, x, *ids: forward(p, r, a, b, ids[0], x, *ids[1:]),
        (*embedded, amounts),
        forward_args=(plan, region, pair),
        accuracy=GAUSS,
    )
    plain = attribute(
        lambda *parts: model.last(torch.cat(parts, 1)), (*embedded, amounts), accuracy=GAUSS
    )
    for one, other in zip(found.attributions, plain.attributions, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert found.gap.abs().max() < 1e-8


def test_looking_up_ends_with_the_last_module() -> None:
    class Dear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            self.words(ids)
            raise RuntimeError("too dear")

    ids = torch.tensor([[1, 2]])
    assert at_embedding(Dear(), "words")[0](ids).shape == (1, 2, 2)
    with pytest.raises(RuntimeError, match="too dear"):
        at_embedding(Dear(), "words")[1](torch.zeros(1, 2, 2), ids)


class Awkward(nn.Module):
    """Modules that cannot be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.idle = nn.Embedding(4, 2), nn.Embedding(4, 2)
        self.pair = nn.LSTM(2, 2, batch_first=True)
        self.turned, self.whole = nn.Flatten(0), nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.word_embeddings(ids.flip(1))
        return self.turned(self.pair(x)[0]).sum() + self.whole(ids).sum(1).float()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("word_embedding", "did you mean `word_embeddings`?"),
        ("", "no module of this name"),
        ("zzzzz", "did you mean `word_embeddings`"),
        ("idle", "seen: none"),
        ("word_embeddings", "a second call"),
        ("pair", "seen: tuple"),
        ("turned", "seen: torch.float32 of shape [12]"),
        ("whole", "seen: torch.int64 of shape [2, 3]"),
    ],
)
def test_a_module_that_cannot_be_opened_is_refused(name: str, message: str) -> None:
    model, ids = Awkward().eval(), torch.tensor([[1, 2, 3], [0, 1, 2]])
    with pytest.raises(SpecError) as caught:
        at_embedding(model, name)[1](torch.zeros(2, 3, 2), ids)
    assert message in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_ids_and_embeddings_that_do_not_fit_are_refused() -> None:
    model, (ids, mask) = made(Text), texts()
    lookup, forward = at_embedding(model, "tokens")
    with pytest.raises(DataError, match=r"(?s)row 1.*ids from 0 to 19 at `tokens`.*seen: 20"):
        lookup(ids.index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(20)), mask)
    with pytest.raises(SpecError, match=r"(?s)expected: shape \[3, 5, 6\].*seen: \[3, 4, 6\]"):
        forward(lookup(ids, mask)[:, :4], ids, mask)
    with pytest.raises(SpecError, match="train mode"):
        attribute(
            at_embedding(model.train(), "tokens")[1],
            lookup(ids, mask),
            target=1,
            forward_args=(ids, mask),
            accuracy=GAUSS,
        )


# --- jobs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [None, 7])
def test_one_number_per_id_is_the_sum_over_its_embedding(constant: int | None) -> None:
    model, (ids, mask) = made(Text), texts()
    baseline = {"kind": "zero"} if constant is None else {"kind": "constant", "value": constant}
    opened = IdsModel(
        model,
        spec(
            {"name": "x", "ids": "x", "embedding": "tokens", "pad": 0, "baseline": baseline}
        ).inputs,
    )
    found = attribute(
        opened, torch.ones(3, 5, dtype=F64), target=1, forward_args=(ids, mask), accuracy=GAUSS
    )
    lookup, forward = at_embedding(model, "tokens")
    expected = attribute(
        forward,
        lookup(ids, mask),
        target=1,
        forward_args=(ids, mask),
        accuracy=GAUSS,
        baselines=None if constant is None else lookup(torch.full_like(ids, constant), mask),
    )
    torch.testing.assert_close(
        found.attributions, expected.attributions.sum(-1), rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(found.f_input, expected.f_input, rtol=0, atol=0)
    torch.testing.assert_close(found.f_baseline, expected.f_baseline, rtol=0, atol=0)


def test_each_row_may_have_ids_of_its_own_as_its_baseline() -> None:
    """Beside a second input of ids, and padding; what is the same id in both earns nothing."""
    model, (ids, mask) = made(Text), texts()
    others = ids.flip(1)
    ids[1, 4] = PADDING
    mask[1, 4] = 0
    x = {"name": "x", "ids": "x", "embedding": "tokens", "pad": 0}
    shuffled = spec(x | {"baseline": {"kind": "shuffle"}})
    opened = IdsModel(model, shuffled.inputs)
    shares = mask.to(F64)
    found = attribute(opened, shares, target=1, forward_args=(ids, others, mask), accuracy=GAUSS)
    lookup, forward = at_embedding(model, "tokens")
    filled = ids.masked_fill(ids == PADDING, 0)
    expected = attribute(
        forward,
        lookup(filled, mask),
        target=1,
        forward_args=(filled, mask),
        accuracy=GAUSS,
        baselines=lookup(others.masked_fill(ids == PADDING, 0), mask),
    )
    torch.testing.assert_close(
        found.attributions, expected.attributions.sum(-1), rtol=1e-12, atol=1e-13
    )
    assert (found.attributions[ids == others] == 0).all()
    assert found.attributions[1, 4] == 0
    torch.testing.assert_close(found.f_baseline, expected.f_baseline, rtol=0, atol=0)
    unknown = opened.unknown_ids(shares, ids, others.masked_fill(others == others[2, 0], 20), mask)
    assert unknown[2] == "the baseline of x holds 20: expected ids from 0 to 19 at `tokens`"


@pytest.mark.parametrize("constant", [None, 7])
def test_padding_earns_exactly_nothing(constant: int | None) -> None:
    class Careless(Text):
        """Takes padding for words."""

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids, torch.ones_like(mask))

    baseline = {"kind": "zero"} if constant is None else {"kind": "constant", "value": constant}
    job = spec({"name": "x", "ids": "x", "embedding": "tokens", "pad": 3, "baseline": baseline})
    ids, mask = texts()
    padded = torch.nn.functional.pad(ids, (0, 3), value=-1)
    real = torch.nn.functional.pad(mask, (0, 3))
    for kind, agrees in ((Text, True), (Careless, False)):
        found = attribute(
            IdsModel(made(kind), job.inputs),
            real.to(F64),
            target=1,
            forward_args=(padded, real),
            accuracy=GAUSS,
        )
        assert (found.attributions[:, 5:] == 0).all()
        assert found.gap.abs().max() < 1e-6
        torch.testing.assert_close(
            found.f_input, made(kind)(padded.masked_fill(padded < 0, 3), real)[:, 1]
        )
        alone = attribute(
            IdsModel(made(kind), job.inputs),
            mask.to(F64),
            target=1,
            forward_args=(ids, mask),
            accuracy=GAUSS,
        )
        assert torch.allclose(found.attributions[:, :5], alone.attributions, rtol=1e-9) == agrees


def test_columns_with_a_module_each_beside_others() -> None:
    model = made(Table)
    job = spec(
        {"name": "plan", "ids": "plan", "embedding": "plan"},
        {"name": "amounts", "columns": ["u", "v"]},
        {
            "name": "region",
            "ids": "region",
            "embedding": "region",
            "baseline": {"kind": "constant", "value": 2},
        },
        {"name": "pair", "ids": ["a", "b"], "embedding": ["pair.0", "pair.1"]},
    )
    plan, region, pair = torch.tensor([0, 4]), torch.tensor([6, 1]), torch.tensor([[3, 5], [0, 0]])
    amounts = torch.tensor([[1.5, -2], [0.3, 4]], dtype=F64)
    one = torch.ones(2, 1, dtype=F64)
    opened = through_embeddings(model, job.inputs)
    found = attribute(
        opened,
        (one, amounts, one, one.expand(2, 2)),
        forward_args=(plan, region, pair),
        accuracy=GAUSS,
    )
    weights = [
        model.plan.weight[plan],
        model.region.weight[region],
        model.pair[0].weight[pair[:, 0]],
        model.pair[1].weight[pair[:, 1]],
        amounts,
    ]
    baselines = [torch.zeros_like(w) for w in weights]
    baselines[1] = model.region.weight[[2, 2]]
    plain = attribute(
        lambda *parts: model.last(torch.cat(parts, 1)),
        tuple(weights),
        baselines=tuple(baselines),
        accuracy=GAUSS,
    ).attributions
    sums = [a.sum(1, keepdim=True) for a in plain]
    for mine, theirs in zip(
        found.attributions, (sums[0], plain[4], sums[1], torch.cat(sums[2:4], 1)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_ids_that_the_module_does_not_know_are_named_by_row() -> None:
    ids = torch.tensor([[1, 2, -1], [20, 2, 4], [3, 25, 99]])
    mask = torch.ones(3, 3, dtype=torch.int64)
    x = {"name": "x", "ids": "x", "embedding": "tokens", "pad": 0}
    reasons = IdsModel(made(Text), spec(x).inputs).unknown_ids(mask.to(F64), ids, mask)
    known = "expected ids from 0 to 19 at `tokens`"
    assert reasons == [None, f"x holds 20: {known}", f"x holds 25: {known}"]
    wrong = spec(x | {"baseline": {"kind": "constant", "value": 20}})
    with pytest.raises(SpecError, match=r"(?s)baseline of input `x`.*from 0 to 19.*seen: 20"):
        IdsModel(made(Text), wrong.inputs).unknown_ids(mask.to(F64), ids, mask)


def test_a_model_that_hashes_its_ids_takes_any() -> None:
    class Hashing(Text):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids % 20, mask)

    ids, mask = torch.tensor([[1, 2, 300]]), torch.ones(1, 3, dtype=torch.int64)
    opened = IdsModel(
        made(Hashing), spec({"name": "x", "ids": "x", "embedding": "tokens", "pad": 0}).inputs
    )
    assert opened.unknown_ids(mask.to(F64), ids, mask) == [None]


def test_a_module_must_give_one_vector_per_id() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.bag(ids).sum(1)

    job = spec({"name": "x", "ids": "x", "embedding": "bag", "pad": 0})
    opened = IdsModel(Bag().eval(), job.inputs)
    with pytest.raises(
        SpecError, match=r"(?s)one vector for each id: \[2, 4, 'dim'\].*seen: shape \[2, 3\]"
    ):
        opened(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(SpecError, match=r"(?s)for inputs of ids.*kind factory"):
        through_embeddings(lambda ids: ids, job.inputs)
