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
    once.
    """
    problem = evaluator.problem
    f_input = _selected(problem, evaluator.outputs(problem.inputs, rows), rows)
    first, which = _distinct(problem, rows)
    out = evaluator.outputs(problem.baselines, rows[first])
    f_baseline = _selected(problem, out[which], rows)
    return f_input, f_baseline


def _distinct(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `rows` of the distinct (baseline, forward_args), and which of them each
    row has.
    """
    own = [
        t
        for t in (*problem.baselines, *problem.forward_args)
        if t.shape[0] > 1 or t.shape[0] == problem.rows
    ]
    if not own:
        return rows.new_zeros(1), torch.zeros_like(rows)
    seen: dict[bytes, int] = {}
    table = np.concatenate([_bytes(t[rows]) for t in own], 1)
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
