"""Dataset means, the same for any sharding: one partial sum per row group, folded in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from integrand.schemas.errors import DataError
from integrand.schemas.records import InputShape
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan

_summing = np.errstate(over="ignore", invalid="ignore")
"""Sums beyond float64 are found by `Means.check`."""


@dataclass(frozen=True, eq=False)
class Partial:
    """Clean rows of one row group and, per input, their sum in model units: `[*shape]` float64;
    zeros for ids.
    """

    file: int
    row_group: int
    count: int
    sums: Arrays


class Means(PrePass[Partial]):
    """Mean of each input over all clean rows, `[*shape]` float64 in model units."""

    name = "mean"

    @_summing
    def partial(self, scan: Scan, file: int, row_group: int) -> Partial:
        count = 0
        sums = [np.zeros(shape.shape, np.float64) for shape in scan.shapes]
        for rows in scan.blocks(file, row_group):
            clean = scan.clean(rows)
            count += int(clean.sum())
            for total, values, one in zip(sums, rows.inputs, scan.spec.inputs, strict=True):
                if one.modules:
                    continue
                values[~clean] = 0  # as all bad rows are: a sum of fewer would round otherwise
                total += values.numpy().sum(axis=0, dtype=np.float64)
        return Partial(file, row_group, count, tuple(sums))

    @_summing
    def merge(self, partials: Sequence[Partial]) -> Arrays:
        """Added up in (file, row group) order. Raises DataError if no row is clean."""
        ordered = sorted(partials, key=lambda p: (p.file, p.row_group))
        count = sum(p.count for p in ordered)
        if not count:
            raise DataError(
                "mean baseline",
                expected="at least one clean row",
                seen="none in the whole source",
                next_step="fix the input columns, or choose another baseline",
            )
        totals = [np.zeros_like(values) for values in ordered[0].sums]
        for partial in ordered:
            for total, values in zip(totals, partial.sums, strict=True):
                total += values
        return tuple(total / count for total in totals)

    def check(self, found: Arrays, shapes: Sequence[InputShape]) -> None:
        """DataError with the column, if the clean values of one are too large for their sum."""
        for values, shape in zip(found, shapes, strict=True):
            wrong = np.flatnonzero(~np.isfinite(values))
            if len(wrong):
                column = shape.columns[int(wrong[0]) if shape.named else 0]
                raise DataError(
                    f"mean baseline, column `{column}`",
                    expected="values whose sum float64 can hold",
                    seen=f"a mean of {values.flat[wrong[0]]}",
                    next_step="fix the largest values, scale them, or choose another baseline",
                )
