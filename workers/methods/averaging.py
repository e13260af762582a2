"""Rows with several baselines: the mean of what each baseline gives, how far these are apart, and
what is certain of the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.engine.parts import NARROW_PART, ByDevice, in_parts
from integrand.workers.engine.results import Explained
from integrand.workers.engine.tracks import on_device
from integrand.workers.engine.verdicts import CODES
from integrand.workers.reason_codes.candidates import Candidates

Numbers = NDArray[Any]
AT_ONCE = ByDevice(cpu=128 << 20, gpu=2 << 30)
"""Bytes that the attributions of all paths of some rows may take before they are averaged."""
LOSING = (RowStatus.bad_input, RowStatus.nonfinite)
"""One draw of them leaves no mean."""


def rows_at_once(device: torch.device, numbers: int) -> int:
    """Rows that are explained at once, with so many float64 numbers of all paths of each."""
    return max(1, AT_ONCE.on(device) // (8 * numbers))


def averaged(
    found: Explained, draws: int, tolerance: float | None, candidates: Candidates | None = None
) -> Explained:
    """Means over the draws of rows whose paths lie side by side in `found`; `candidates` are what
    may be reasons, where rows have some.

    The error of a mean is at most the mean of errors, Σ_k e_k ‖a_k‖₁ / (K ‖ā‖₁): more than each
    of them where the draws cancel.
    """
    sizes = _sizes(found, draws)
    errors = _by_draw(found.numbers["error_estimate"], draws)
    numbers = {name: _mean_number(name, own, draws) for name, own in found.numbers.items()}
    error = _ratio(_total(errors * sizes.of_draws) / draws, sizes.of_mean)
    numbers["error_estimate"] = error
    codes = _codes(_by_draw(found.codes, draws), error, tolerance)
    optional = {
        "baseline_spread": _ratio(sizes.spread, sizes.of_mean),
        "draws": np.full(codes.shape, draws, np.int32),
    }
    if candidates is not None:
        own = [found.attributions[i] for i in found.attributed]
        means = [sizes.means[i] for i in found.attributed]
        optional["reasons_agree"] = _agreement(own, means, draws, candidates)
    return replace(
        found,
        attributions=_with_spreads(found, sizes.means, draws),
        numbers=numbers,
        codes=codes,
        reason=_reasons(found, codes, error, draws),
        optional=optional,
    )


def counted(found: Explained, draws: int) -> Explained:
    """Rows whose baselines were taken together: there are so many, and how far they are apart is
    not known.
    """
    shape = found.codes.shape
    unknown = np.full(shape, np.nan)
    drawn = np.full(shape, draws, np.int32)
    return replace(found, optional={"baseline_spread": unknown, "draws": drawn})


def _agreement(
    attributions: Sequence[Tensor], means: Sequence[Tensor], draws: int, candidates: Candidates
) -> Numbers:
    """Share of draws whose first reason is that of their mean, `[rows, targets]`."""
    first = _first(means, candidates)
    by_draw = _by_draw(_first(attributions, candidates), draws)
    return np.asarray((by_draw == first[:, None]).mean(axis=1))


def _first(attributions: Sequence[Tensor], candidates: Candidates) -> Numbers:
    """Each row's first reason, by its number among the candidates, `[rows, targets]`."""
    flat = torch.cat([own.flatten(2).double() for own in attributions], 2).cpu().numpy()
    rows, targets, features = flat.shape
    return candidates.first(flat.reshape(rows * targets, features)).reshape(rows, targets)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Sizes:
    """What draws amount to.

    means     their mean ā for each block, `[rows, targets, ...]`
    of_draws  ‖a_k‖₁ of what errors are relative to, `[rows, draws, targets]`
    of_mean   ‖ā‖₁ of it, `[rows, targets]`
    spread    root mean square of its ‖a_k − ā‖₁, `[rows, targets]`
    """

    means: tuple[Tensor, ...]
    of_draws: Numbers
    of_mean: Numbers
    spread: Numbers


def _sizes(found: Explained, draws: int) -> _Sizes:
    blocks = [own.unflatten(0, (-1, draws)) for own in found.attributions]
    means = tuple(_mean(own).to(own.dtype) for own in blocks)
    by_draw = [blocks[i] for i in found.certified]
    certified = [means[i] for i in found.certified]
    of_draws = []
    squares: Tensor | float = 0.0
    for draw in range(draws):
        own = [column[:, draw].double() for column in by_draw]
        apart = [one - mean for one, mean in zip(own, certified, strict=True)]
        of_draws.append(l1(own))
        squares = squares + l1(apart).square()
    assert isinstance(squares, Tensor)
    return _Sizes(
        means=means,
        of_draws=torch.stack(of_draws, 1).cpu().numpy(),
        of_mean=l1(certified).cpu().numpy(),
        spread=(squares / draws).sqrt().cpu().numpy(),
    )


def _with_spreads(found: Explained, means: tuple[Tensor, ...], draws: int) -> tuple[Tensor, ...]:
    """Means of blocks, but where spreads are asked for the standard deviation of an attribution
    over the draws.
    """
    blocks = list(means)
    spreads = [i for i, role in enumerate(found.roles) if role == "spread"]
    if spreads:
        for place, i in zip(spreads, found.attributed, strict=True):
            by_draw = found.attributions[i].unflatten(0, (-1, draws))
            blocks[place] = _deviation(by_draw).to(by_draw.dtype)
    return tuple(blocks)


def _deviation(by_draw: Tensor) -> Tensor:
    """Root mean square of the distance from the mean, draw by draw: `[rows, targets, ...]`
    float64.
    """
    mean = _mean(by_draw)
    squares = torch.zeros_like(mean)
    for draw in range(by_draw.shape[1]):
        squares = squares + (by_draw[:, draw] - mean).square()
    return (squares / by_draw.shape[1]).sqrt()


def _mean(by_draw: Tensor) -> Tensor:
    """Draw by draw, in one order whoever is beside a row: `[rows, targets, ...]` float64."""
    draws = by_draw.shape[1]
    total = by_draw[:, 0].double()
    for draw in range(1, draws):
        total = total + by_draw[:, draw]
    return total / draws


def l1(columns: Sequence[Tensor]) -> Tensor:
    """‖·‖₁ of all inputs `[rows, targets, ...]` of each row and target, float64: of always as many
    at once, so that bits do not depend on how many there are.
    """
    leading = columns[0].shape[:2]
    flat = torch.cat([own.flatten(2) for own in columns], 2).flatten(0, 1)
    sums = []
    for part, count in in_parts(len(flat), NARROW_PART.on(flat.device)):
        own = flat[on_device(part, flat.device)].double()
        sums.append(own.abs().sum(1)[:count])
    return torch.cat(sums).reshape(leading)


def _by_draw(values: Numbers, draws: int) -> Numbers:
    """[rows, draws, targets]"""
    return values.reshape(-1, draws, values.shape[1])


def _total(by_draw: Numbers) -> Numbers:
    """Over draws, one after the other."""
    total = by_draw[:, 0].copy()
    for draw in range(1, by_draw.shape[1]):
        total += by_draw[:, draw]
    return total


def _mean_number(name: str, values: Numbers, draws: int) -> Numbers:
    """Of the draws, but all of their evaluations."""
    total = _total(_by_draw(values, draws))
    return total if name == "evaluations" else total / draws


def _ratio(values: Numbers, size: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values == 0, 0.0, values / size)


# --- statuses ------------------------------------------------------------------------------------


def _codes(by_draw: Numbers, error: Numbers, tolerance: float | None) -> Numbers:
    """The status of each mean: that of the worst draw, unless the mean's own error says more."""

    def any_is(status: RowStatus) -> Numbers:
        found: Numbers = (by_draw == CODES[status]).any(1)
        return found

    codes = np.full(error.shape, CODES[RowStatus.ok])
    if tolerance is None:
        codes[any_is(RowStatus.unchecked)] = CODES[RowStatus.unchecked]
    else:
        at_floor = any_is(RowStatus.at_precision_floor) & ~any_is(RowStatus.not_converged)
        open_ = ~(error <= tolerance)
        codes[open_] = CODES[RowStatus.not_converged]
        codes[open_ & at_floor] = CODES[RowStatus.at_precision_floor]
    for status in LOSING:
        codes[any_is(status)] = CODES[status]
    return codes


def _reasons(found: Explained, codes: Numbers, error: Numbers, draws: int) -> Numbers:
    """What is said of the first draw with the row's status; that draws cancel where none has it."""
    reasons = np.empty(codes.shape, object)
    by_draw, said = _by_draw(found.codes, draws), _by_draw(found.reason, draws)
    for row, target in _open(codes):
        same = np.flatnonzero(by_draw[row, :, target] == codes[row, target])
        if len(same):
            reasons[row, target] = f"draw {same[0]}: {said[row, same[0], target]}"
        else:
            reasons[row, target] = (
                f"error estimate {error[row, target]:.2g}: the draws cancel, each within the"
                " tolerance of its own size"
            )
    return reasons


def _open(codes: Numbers) -> Iterator[tuple[int, int]]:
    closed = [CODES[RowStatus.ok], CODES[RowStatus.unchecked]]
    yield from map(tuple, np.argwhere(~np.isin(codes, closed)).tolist())


def cancelling(found: Explained, mean: Explained, draws: int, tolerance: float) -> Numbers:
    """By how much smaller the tolerance of draws must be for their mean to be within it, `[rows]`:
    a power of two; 1 where it is, or where a draw is not certified itself.
    """
    certified = _by_draw(found.codes, draws) == CODES[RowStatus.ok]
    missing = np.where(certified.all(1), mean.numbers["error_estimate"] / tolerance, 1.0)
    most = np.nan_to_num(missing, nan=1.0, posinf=1.0).max(1)
    return np.asarray(2 ** np.ceil(np.log2(np.maximum(1.0, most))))


# --- parts ---------------------------------------------------------------------------------------


def below(parts: Sequence[Explained]) -> Explained:
    """The rows of all parts below each other."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(part.attributions for part in parts), strict=True)
    return replace(
        parts[0],
        attributions=tuple(torch.cat(same) for same in columns),
        numbers=_joined([part.numbers for part in parts]),
        codes=np.concatenate([part.codes for part in parts]),
        reason=np.concatenate([part.reason for part in parts]),
        padded=sum(part.padded for part in parts),
        batch_rows=min(part.batch_rows for part in parts),
        optional=_joined([part.optional for part in parts]),
    )


def _joined(columns: Sequence[Mapping[str, Numbers]]) -> dict[str, Numbers]:
    return {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}


def with_rows(found: Explained, rows: Numbers, better: Explained) -> Explained:
    """Some rows replaced by better ones, whose evaluations come on top."""
    spent = found.numbers["evaluations"][rows]
    numbers = {name: column.copy() for name, column in found.numbers.items()}
    for name, column in better.numbers.items():
        numbers[name][rows] = column
    numbers["evaluations"][rows] += spent
    index = torch.from_numpy(rows)
    columns = []
    for own, other in zip(found.attributions, better.attributions, strict=True):
        columns.append(own.index_copy(0, index.to(own.device), other))
    return replace(
        found,
        attributions=tuple(columns),
        numbers=numbers,
        codes=_replaced(found.codes, rows, better.codes),
        reason=_replaced(found.reason, rows, better.reason),
        optional={
            name: _replaced(column, rows, better.optional[name])
            for name, column in found.optional.items()
        },
        padded=found.padded + better.padded,
        batch_rows=min(found.batch_rows, better.batch_rows),
    )


def _replaced(column: Numbers, rows: Numbers, better: Numbers) -> Numbers:
    made = column.copy()
    made[rows] = better
    return made
