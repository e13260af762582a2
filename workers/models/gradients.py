"""Gradients of a model's explained outputs, and the tensors of a row side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.models.outputs import Forward, on_copies, select
from integrand.workers.models.recurrence import explained_refusal


@dataclass(frozen=True)
class SideBySide:
    """Several tensors of each row as one, `[rows, elements]`, and the way back.

    shapes  of one row of each
    """

    shapes: tuple[torch.Size, ...]

    @staticmethod
    def like(tensors: Sequence[Tensor]) -> SideBySide:
        return SideBySide(tuple(t.shape[1:] for t in tensors))

    @staticmethod
    def join(tensors: Sequence[Tensor]) -> Tensor:
        flat = [t.reshape(len(t), -1) for t in tensors]
        if len(flat) == 1:
            return flat[0]
        return torch.cat(flat, 1)

    def split(self, joined: Tensor) -> list[Tensor]:
        sizes = [shape.numel() for shape in self.shapes]
        parts = torch.split(joined, sizes, 1)
        return [p.reshape(len(p), *s) for p, s in zip(parts, self.shapes, strict=True)]


def gradients_at(
    forward: Forward, points: Sequence[Tensor], forward_args: Sequence[Tensor], table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A model's output, and the gradients of what `table` explains of it, `[rows, elements]`.

    `points` and `forward_args` are `[rows, ...]`, `table` as from `outputs.target_table`.
    """
    with torch.enable_grad():
        leaves = [p.detach().clone().requires_grad_() for p in points]
        out = on_copies(forward, *leaves, *forward_args)
        found = gradients_of(select(out, table).sum(), leaves)
    return out.detach(), SideBySide.join(found)


def gradients_of(
    outputs: Tensor | Sequence[Tensor],
    points: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    keep_graph: bool = False,
    required: bool = False,
) -> list[Tensor]:
    """Gradients like `points`; zeros where outputs do not depend on one.

    cotangents  like `outputs`; None where those are scalars
    keep_graph  whether another backward pass follows
    required    whether to raise SpecError where outputs depend on no point at all
    """
    found = differentiate(outputs, points, cotangents, keep_graph=keep_graph)
    if required and all(g is None for g in found):
        raise independent_of_inputs()
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, points, strict=True)]


def differentiate(
    outputs: Tensor | Sequence[Tensor],
    points: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    keep_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """As `gradients_of`; None where outputs do not depend on a point."""
    try:
        return torch.autograd.grad(
            outputs, points, cotangents, retain_graph=keep_graph, allow_unused=True
        )
    except RuntimeError as error:
        refusal = explained_refusal(error)
        if refusal is None:
            raise
        raise refusal from error


def independent_of_inputs() -> SpecError:
    return SpecError(
        "model output",
        expected="an output that depends on the inputs through differentiable operations",
        seen="no gradient path to any input",
        next_step=(
            "remove detach(), no_grad(), argmax or rounding between input and output; explain a "
            "TorchScript program as it was before optimize_for_inference"
        ),
    )
