"""Each row's k largest outputs, the largest first."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.targets import TopKTarget
from integrand.workers.models.targets.base import TargetKind, TargetRows


class TopK(TargetKind[TopKTarget]):
    """As many as the model has, at most."""

    known_without_model = False

    def check(self, target: TopKTarget, out: Tensor) -> None:
        super().check(target, out)
        if target.k > out.shape[-1]:
            raise SpecError(
                "target.k",
                expected=f"at most {out.shape[-1]}, the model's outputs",
                seen=str(target.k),
                next_step="explain fewer, or `all`",
            )

    def of_sample(
        self, target: TopKTarget, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor:
        return out.argmax(-1, keepdim=True)

    def of_rows(self, target: TopKTarget, rows: TargetRows) -> Tensor:
        def largest(out: Tensor) -> Tensor:
            # topk breaks ties as it likes, argmax takes the first
            if target.k == 1:
                return out.argmax(-1, keepdim=True)
            return out.topk(target.k, -1).indices

        return rows.choose(largest)[:, :, None]
