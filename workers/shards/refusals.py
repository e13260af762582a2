"""Rows of a table that are not attributed: bad ones, and those known to take workers away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from integrand.workers.baselines.outside import rows_outside
from integrand.workers.baselines.tensors import Given, at_rows
from integrand.workers.data.tensors import Rows
from integrand.workers.isolation import Raised, isolate
from integrand.workers.models.embeddings import IdsModel
from integrand.workers.shards.job import Job
from integrand.workers.shards.targets import refuse_places, refuse_targets

_LOOKUP_ROWS = 256
"""Rows whose ids are looked at in one pass before anything is computed."""


@dataclass(frozen=True, eq=False)
class Refusals:
    """Which rows are not run, and why.

    reasons  of every row, None for one that is not `bad_input`
    lost     rows that end as `failed` without being run, with their reasons
    """

    reasons: tuple[str | None, ...]
    lost: Mapping[int, str]

    @property
    def clean(self) -> Tensor:
        """Numbers of the rows that are run, `[n]` int64."""
        return _numbers(list(self.reasons), self.lost)


def refusals(job: Job, rows: Rows, culprits: Mapping[int, str]) -> Refusals:
    """What rows say of themselves, then what the model does not know; `culprits` are lost, unless
    they are bad.
    """
    reasons = list(rows.reasons)
    refuse_targets(job, rows, reasons)
    for row, reason in rows_outside(job.plan.spec, job.plan.inputs, rows).items():
        reasons[row] = reasons[row] or reason
    lost = {row: reason for row, reason in culprits.items() if reasons[row] is None}
    if isinstance(job.forward, IdsModel):
        clean = _numbers(reasons, lost)
        _refuse_ids(job, job.forward, rows, reasons, clean)
        refuse_places(job, rows, reasons, _numbers(reasons, lost))
    return Refusals(tuple(reasons), lost)


def _numbers(reasons: list[str | None], lost: Mapping[int, str]) -> Tensor:
    good = [row for row, reason in enumerate(reasons) if reason is None]
    clean = [row for row in good if row not in lost]
    return torch.tensor(clean, dtype=torch.int64)


def _refuse_ids(
    job: Job, model: IdsModel, rows: Rows, reasons: list[str | None], clean: Tensor
) -> None:
    """Reasons for rows with ids that the model does not know; one that it raises on is `failed`
    later.
    """
    some = Given.of(rows).take(clean)
    arguments = [t.to(job.device) for t in at_rows(job.plan.spec, some)]

    def attempt(part: slice) -> list[str | None]:
        some = [a[part] for a in arguments]
        return model.unknown_ids(*some)

    def failed(error: Raised) -> list[str | None]:
        return [None]

    for start in range(0, len(clean), _LOOKUP_ROWS):
        part = slice(start, min(start + _LOOKUP_ROWS, len(clean)))
        found = chain.from_iterable(isolate(attempt, failed, part))
        for row, reason in zip(clean[part].tolist(), found, strict=True):
            reasons[row] = reason
