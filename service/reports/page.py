"""A run as one HTML page: no scripts, nothing fetched, and whatever a name says is text."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from integrand.schemas.records import Quarantined
from integrand.service.reports.rows import columns_with_values, nothing_to_see
from integrand.service.reports.runs import manifest_facts
from integrand.service.reports.tables import cell
from integrand.service.terminal import visible

if TYPE_CHECKING:
    from integrand.service.runs.query import Run


@dataclass(frozen=True)
class Sheet:
    """A titled table as text; `numeric` says which columns stand to the right, `bars` how long a
    row's bar is, 0 to 1.
    """

    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    bars: tuple[float, ...] = ()


@dataclass(frozen=True)
class Page:
    """What the template shows of a run."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sheets: tuple[Sheet, ...]
    quarantined: tuple[Quarantined, ...]
    warnings: tuple[str, ...]


def html_page(run: Run, top: int) -> str:
    """The manifest, the `top` features and the worst rows. Reads one shard at a time."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    template = environment.from_string(
        files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(page=_page(run, top))


def _page(run: Run, top: int) -> Page:
    manifest = run.manifest
    sheets = (_features(run, top), _worst(run, top)) if manifest.shards_done else ()
    return Page(
        f"{manifest.name} · run {manifest.run_id}",
        tuple(manifest_facts(manifest)),
        sheets,
        manifest.quarantined,
        manifest.warnings,
    )


def _features(run: Run, top: int) -> Sheet:
    frame = run.top_features(top)
    means = frame["mean_abs"]
    largest = max(means.max() if len(frame) else 0.0, 1e-300)
    bars = tuple(float(value / largest) for value in means)
    return _sheet("Top features", frame, bars)


def _worst(run: Run, top: int) -> Sheet:
    quiet = nothing_to_see(run.manifest)
    if quiet is not None:
        return _sheet("Worst rows", pd.DataFrame({"rows": [quiet]}))
    return _sheet("Worst rows", columns_with_values(run.worst(top)))


def _sheet(title: str, frame: pd.DataFrame, bars: tuple[float, ...] = ()) -> Sheet:
    columns = tuple(map(str, frame.columns))
    numeric = tuple(pd.api.types.is_numeric_dtype(frame[c]) for c in frame.columns)
    rows = tuple(tuple(map(cell, values)) for values in frame.itertuples(index=False))
    return Sheet(title, columns, numeric, rows, bars)


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) else value
