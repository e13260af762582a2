"""The tokens of a text on the colours of their attributions, in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from integrand.schemas.tables import PREFIX
from integrand.service.terminal import visible

CAP = 99
"""Percentile of absolute attributions at which colours end."""
RED, BLUE, WHITE = (214, 96, 77), (67, 147, 195), (255, 255, 255)
"""Raises, lowers, neither: of ColorBrewer's RdBu, light enough for black letters."""


@dataclass(frozen=True)
class ColouredToken:
    """A token or word, its attribution, and the colour behind it."""

    text: str
    attribution: float
    colour: str


def coloured_tokens(record: pd.Series[Any]) -> tuple[ColouredToken, ...]:
    """Of an output row of a text; none where a row has no tokens, or not one number for each."""
    for column in ("words", "tokens"):
        texts = record.get(column)
        if texts is None or np.ndim(texts) == 0:
            continue
        for name in record.index:
            if str(name).startswith(PREFIX) and np.shape(record[name]) == (len(texts),):
                values = np.asarray(record[name], np.float64)
                return _coloured([str(text) for text in texts], values)
    return ()


def _coloured(texts: list[str], values: NDArray[np.float64]) -> tuple[ColouredToken, ...]:
    limit = float(np.percentile(np.abs(values), CAP)) if len(values) else 0.0
    shares = np.clip(values / (limit or 1.0), -1, 1)
    found = zip(texts, values.tolist(), shares.tolist(), strict=True)
    return tuple(ColouredToken(text, value, colour_of(share)) for text, value, share in found)


def colour_of(share: float) -> str:
    """`#rrggbb` of −1 (lowers) to 1 (raises), white at 0 and alike on both sides."""
    end = RED if share > 0 else BLUE
    mixed = [round(w + (e - w) * abs(share)) for w, e in zip(WHITE, end, strict=True)]
    return "#" + bytes(mixed).hex()


def show_tokens(console: Console, record: pd.Series[Any]) -> None:
    """A row's text, red where it raises the output and blue where it lowers it."""
    tokens = coloured_tokens(record)
    if not tokens:
        return
    line = Text()
    for token in tokens:
        line.append(visible(token.text), style=f"#000000 on {token.colour}")
        line.append(" ")
    console.print(line, soft_wrap=True)
    console.print(f"red raises the output, blue lowers it; colours end at the {CAP}th percentile")
