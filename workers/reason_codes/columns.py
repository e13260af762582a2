"""Reasons of rows as output columns: a list for each row, and how certain it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.tables import ReasonsStatus, RowStatus
from integrand.workers.reason_codes.candidates import Candidates, Flags, Floats
from integrand.workers.reason_codes.separation import Ranking, rank

Texts = Callable[[str, NDArray[np.int64]], list[str | None]]
"""Takes a feature and numbers of rows, gives what the source holds there, as text."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """Rows that reasons are asked for.

    attributions  `[rows, features]` float64
    moved         where x differs from a baseline, `[rows, features]`
    error         estimated ‖a − a*‖₁ / ‖a‖₁, `[rows]`; NaN where there is none
    status        of each
    """

    attributions: Floats
    moved: Flags
    error: Floats
    status: NDArray[np.object_]


def reason_columns(
    candidates: Candidates, rows: Asked, texts: Texts
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """The columns `reasons` and `reasons_status` of rows."""
    pushes = candidates.pushes(rows.attributions)
    moved = candidates.moved(rows.moved | (rows.attributions != 0))
    deviation = rows.error * np.abs(rows.attributions).sum(axis=1)
    ranking = rank(pushes, moved, deviation, candidates.k)
    leading = _leading(candidates, rows.attributions, ranking)
    shares = _shares(candidates, rows.attributions, pushes)
    values = _values(candidates, leading, ranking.given, texts)
    reasons = np.empty(len(pushes), object)
    for row in range(len(pushes)):
        reasons[row] = []
        for place in np.flatnonzero(ranking.given[row]).tolist():
            number = ranking.order[row, place]
            candidate = candidates.each[number]
            reason: dict[str, Any] = {
                "rank": place + 1,
                "code": candidate.code,
                "feature": candidates.features[leading[row, place]],
                "value": values[row, place],
                "contribution": float(candidates.sign * pushes[row, number]),
                "share": float(shares[row, number]),
                "separated": bool(ranking.separated[row, place]),
                "text": candidate.text,
            }
            reasons[row].append(reason)
    return reasons, _statuses(candidates, rows, ranking)


def _leading(candidates: Candidates, attributions: Floats, ranking: Ranking) -> NDArray[np.int64]:
    """Of each ranked candidate, the feature that pushes most."""
    found = np.zeros(ranking.order.shape, np.int64)
    for number, candidate in enumerate(candidates.each):
        members = np.array(candidate.members)
        most = (candidates.sign * attributions[:, members]).argmax(axis=1)
        row, place = np.nonzero(ranking.order == number)
        found[row, place] = members[most[row]]
    return found


def _shares(candidates: Candidates, attributions: Floats, pushes: Floats) -> Floats:
    """Each push as a part of all that push the same way, those of excluded features too."""
    within = {member for candidate in candidates.each for member in candidate.members}
    total = np.zeros(len(pushes))
    for place in range(attributions.shape[1]):
        if place not in within:
            total += np.maximum(candidates.sign * attributions[:, place], 0.0)
    for place in range(pushes.shape[1]):
        total += np.maximum(pushes[:, place], 0.0)
    return np.asarray(pushes / np.where(total > 0, total, 1.0)[:, None])


def _values(
    candidates: Candidates, leading: NDArray[np.int64], given: Flags, texts: Texts
) -> NDArray[np.object_]:
    found = np.empty(leading.shape, object)
    for number, name in enumerate(candidates.features):
        row, place = np.nonzero((leading == number) & given)
        if len(row):
            found[row, place] = texts(name, row)
    return found


def _statuses(candidates: Candidates, rows: Asked, ranking: Ranking) -> NDArray[np.object_]:
    prohibited = np.array([candidate.prohibited for candidate in candidates.each], bool)
    failing: Flags = np.any(prohibited[ranking.order] & ranking.given, axis=1)
    found = np.empty(len(ranking.certain), object)
    for row, status in enumerate(rows.status):
        if failing[row]:
            said = ReasonsStatus.prohibited
        elif status is RowStatus.not_converged:
            said = ReasonsStatus.not_converged
        elif not ranking.certain[row]:
            said = ReasonsStatus.order_uncertain
        elif ranking.given[row].any():
            said = ReasonsStatus.certified
        else:
            said = ReasonsStatus.none_toward
        found[row] = str(said)
    return found
