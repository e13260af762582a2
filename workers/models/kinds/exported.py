"""Programs of torch.export."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch

from integrand.schemas.specs.models import ExportedModel
from integrand.workers.models.kinds.base import Loaded, enter_eval, freeze, read_program


def load_exported(
    model: ExportedModel, files: Sequence[bytes], dtype: torch.dtype, device: str
) -> Loaded:
    """The program's module behind a function, since it refuses what callers ask of a module."""
    program = read_program(model.uri, lambda: torch.export.load(io.BytesIO(files[0])))
    exported = read_program(model.uri, program.module)
    enter_eval(exported, "")
    freeze(exported, dtype, device)
    return Loaded(lambda *arguments: exported(*arguments), rows=_declared_rows(program))


def _declared_rows(program: torch.export.ExportedProgram) -> int | None:
    """The most rows that the first argument may have; None without a bound."""
    names = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    if not shapes or not shapes[0]:
        return None
    rows = shapes[0][0]
    if isinstance(rows, int):
        return rows
    bounds = program.range_constraints.get(rows.node.expr)
    return (
        int(bounds.upper)
        if bounds is not None and bounds.upper.is_finite and bounds.upper < 1 << 30
        else None
    )
