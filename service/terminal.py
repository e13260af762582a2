"""The console on which texts of others are shown as they are: no control characters, no emoji
codes, no markup.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

_KEPT = "\n\t"


class Terminal(Console):
    """A rich console whose strings cannot move the cursor, colour the screen or turn the reading
    direction.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    """The text with control and formatting characters spelt out: ESC as `\\x1b`, a bidi override as
    `\\u202e`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _spelt(c)
        for c in text
    )


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
