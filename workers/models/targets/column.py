"""An output index per row, from a column of the source."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.targets import ColumnTarget
from integrand.workers.models.targets.base import TargetKind, TargetRows


class Column(TargetKind[ColumnTarget]):
    """Indices as the rows name them; a row that names none of the model's outputs is bad."""

    def of_sample(
        self, target: ColumnTarget, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor:
        assert column is not None
        width = out.shape[-1]
        inside = (column >= 0) & (column < width)
        if not inside.any():
            raise SpecError(
                f"target.column {target.column}",
                expected=f"output indices from 0 to {width - 1}",
                seen=f"{column.tolist()} in the first rows",
            )
        return column.where(inside, column[inside][0])[:, None]

    def of_rows(self, target: ColumnTarget, rows: TargetRows) -> Tensor:
        assert rows.column is not None
        return rows.column.to(rows.device)[:, None, None]

    def refusals(self, column: Tensor, outputs: int) -> Mapping[int, str]:
        outside = ((column < 0) | (column >= outputs)).nonzero().flatten().tolist()
        return {row: f"target {int(column[row])} is outside 0..{outputs - 1}" for row in outside}
