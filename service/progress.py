"""What a job tells while it runs, and how that is shown: live on a terminal, in plain lines
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_EVERY_S = 5.0


def describe(tally: Tally) -> str:
    """Rows, rows/s, what the kind of job has to say of them, and time left, in one line."""
    parts = [
        f"{tally.rows_done:,}/{tally.rows_planned:,} rows",
        f"{pace(tally.rows_per_second)} rows/s",
    ]
    parts += tally.highlights
    if tally.quarantined:
        parts.append(f"{tally.quarantined} shards quarantined")
    if tally.searched:
        parts.append(f"trying shard {tally.searched} in parts: its rows take workers away")
    parts.append(f"ETA {duration(tally.eta_s)}")
    return ", ".join(parts)


def pace(value: float) -> str:
    """Three digits or more, with separators."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {left} s"
        if minutes
        else f"{left} s"
    )


@dataclass(frozen=True)
class Notice:
    """Something to tell whoever runs a job, in a sentence."""

    text: str
    is_warning: bool = False


@contextmanager
def shown_on(console: Console) -> Iterator[Listener]:
    """A listener to the events of a job that prints notices and shows how far the job is, while the
    block lasts.
    """
    with ExitStack() as stack:
        shows: list[Callable[[Tally], None]] = []

        def listen(event: Event) -> None:
            if isinstance(event, Notice):
                style = "yellow" if event.is_warning else None
                console.print(event.text, style=style, highlight=False, markup=False)
                return
            if not shows:  # a bar is drawn once there is something to show
                shows.append(stack.enter_context(watch(console)))
            shows[0](event)

        yield listen


@contextmanager
def watch(console: Console) -> Iterator[Callable[[Tally], None]]:
    """A function that shows each tally it is given, while the block lasts."""
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("shards", total=None, note="starting workers")
            yield lambda t: bar.update(
                task, completed=t.shards_done, total=t.shards_planned, note=describe(t)
            )
    else:
        yield _plain(console)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    )


def _plain(console: Console) -> Callable[[Tally], None]:
    shown: tuple[float, int, str | None] = (0.0, -1, None)  # when, and what of it was news

    def show(tally: Tally) -> None:
        nonlocal shown
        at, shards, searched = shown
        ended = tally.shards_done == tally.shards_planned and shards != tally.shards_done
        latest = tally.searched or searched
        news = (tally.shards_done, latest) != (shards, searched)
        if ended or (news and time.monotonic() - at >= PLAIN_EVERY_S):
            shown = time.monotonic(), tally.shards_done, latest
            line = f"{tally.shards_done:,}/{tally.shards_planned:,} shards, {describe(tally)}"
            console.print(line, highlight=False, soft_wrap=True)

    return show


@dataclass(frozen=True)
class Tally:
    """Where a run stands: what was stored before, and what this driver has seen since."""

    shards_planned: int
    rows_planned: int
    shards_done: int
    rows_done: int
    rows_here: int
    quarantined: int
    seconds: float
    highlights: tuple[str, ...] = ()
    """What the kind of job says of the rows that are done."""
    searched: str | None = None
    """The shard whose rows are tried in parts, for those that take workers away."""

    @property
    def rows_per_second(self) -> float:
        return self.rows_here / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        left = self.rows_planned - self.rows_done
        return left / self.rows_per_second if self.rows_per_second else None


Event = Notice | Tally
Listener = Callable[[Event], None]
"""What is called with everything that a job has to tell while it runs."""
