"""Each row's largest output."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.specs.targets import ArgmaxTarget
from integrand.workers.models.targets.base import TargetKind, TargetRows


class Argmax(TargetKind[ArgmaxTarget]):
    """The first of the largest."""

    known_without_model = False

    def of_sample(
        self, target: ArgmaxTarget, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor:
        return _largest(out)

    def of_rows(self, target: ArgmaxTarget, rows: TargetRows) -> Tensor:
        return rows.choose(_largest)[:, :, None]


def _largest(out: Tensor) -> Tensor:
    return out.argmax(-1, keepdim=True)
