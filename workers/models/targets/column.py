"""An output index per row, from columns of the source."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.targets import ColumnTarget
from integrand.workers.models.targets.base import (
    TargetKind,
    TargetRows,
    outside,
    refused,
    told,
)
from integrand.workers.models.targets.view import over_axis


class Column(TargetKind[ColumnTarget]):
    """Indices as the rows name them; a row that names none of the model's outputs is bad."""

    def view(self, target: ColumnTarget) -> nn.Module | None:
        return over_axis(target)

    def check(self, target: ColumnTarget, out: Tensor) -> None:
        if not target.columns:
            super().check(target, out)
        elif out.ndim != 1 + target.depth:
            raise SpecError(
                f"target.columns {', '.join(target.columns)}",
                expected=f"one for each axis of model outputs {list(out.shape)} behind their rows",
                seen=f"{target.depth} columns",
            )

    def of_sample(
        self, target: ColumnTarget, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor:
        assert column is not None
        sizes = tuple(out.shape[1:])
        places = column.reshape(rows, target.depth)
        inside = ~outside(places, sizes)
        if not inside.any():
            first, last = told(0 for _ in sizes), told(size - 1 for size in sizes)
            raise SpecError(
                f"target.column {', '.join(target.names)}",
                expected=f"output indices from {first} to {last}",
                seen=f"{column.tolist()} in the first rows",
            )
        return places.where(inside[:, None], places[inside][0])

    def of_rows(self, target: ColumnTarget, rows: TargetRows) -> Tensor:
        assert rows.column is not None
        places = rows.column.reshape(rows.count, target.depth)
        return places.to(rows.device)[:, None]

    def refusals(self, column: Tensor, sizes: tuple[int, ...]) -> Mapping[int, str]:
        return refused(column, sizes)
