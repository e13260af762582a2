"""f at both ends of rows' paths."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Problem
from integrand.workers.models.outputs import select


def endpoint_values(evaluator: Evaluator, rows: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f(x') of some rows, [rows, targets] float64; every distinct baseline is evaluated
    once, and so is x of a row with several.
    """
    problem = evaluator.problem
    first, which = _owners(problem, rows)
    f_input = _selected(problem, evaluator.outputs(problem.input, first), first)[which]
    first, which = _distinct(problem, rows)
    out = evaluator.outputs(problem.baseline, rows[first])
    f_baseline = _selected(problem, out[which], rows)
    return f_input, f_baseline


def _owners(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor | slice]:
    """The first path of each row that owns some, and which of these belongs to each path."""
    if problem.draws == 1:
        return rows, slice(None)
    owners, which = problem.tensors.owner(rows).unique(return_inverse=True)
    return owners * problem.draws, which


def _distinct(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `rows` of the distinct (baseline, forward_args), and which of them each
    row has.
    """
    tensors = problem.tensors
    own = [b for b in problem.baselines if len(b) > 1 or len(b) == problem.rows]
    told_apart = [tensors.of_draw(b, rows) for b in own if len(b) != problem.draws]
    if len(told_apart) < len(own):  # shared draws are known by their numbers
        told_apart.append(rows % problem.draws)
    told_apart += problem.arguments(rows)
    if not told_apart:
        return rows.new_zeros(1), torch.zeros_like(rows)
    seen: dict[bytes, int] = {}
    table = np.concatenate([_bytes(t) for t in told_apart], 1)
    which = [seen.setdefault(row.tobytes(), len(seen)) for row in table]
    first = np.unique(which, return_index=True)[1]
    return torch.from_numpy(first).to(rows.device), torch.tensor(which, device=rows.device)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Of each row, `[rows, bytes]`."""
    flat = tensor.reshape(len(tensor), -1)
    on_host = flat.cpu().contiguous()
    return on_host.view(torch.uint8).numpy()


def _selected(problem: Problem, out: Tensor, rows: Tensor) -> Tensor:
    found = []
    for target in range(problem.targets_per_row):
        table = problem.table(rows, target)
        found.append(select(out, table).double())
    return torch.stack(found, 1)
