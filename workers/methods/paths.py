"""Methods that sum gradients on the way from x' to x, behind the affine prefix where one is
hoisted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from integrand.workers.engine.endpoints import endpoint_values
from integrand.workers.engine.evaluator import Evaluator, lifted
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.verdicts import Verdicts
from integrand.workers.methods.base import Kind, Method, Settle


class PathMethod(Method[Kind]):
    """Override `integrate`."""

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        f_input, f_baseline = endpoint_values(evaluator, rows)
        moving = settle(rows, f_input, f_baseline)
        inner = evaluator
        if prepared.hoisted:
            inner = Evaluator(lifted(evaluator, prepared.hoisted))
        yield from self.integrate(inner, rows[moving], f_input[moving], f_baseline[moving])
        if inner is not evaluator:
            evaluator.absorb(inner)

    @abstractmethod
    def integrate(
        self, evaluator: Evaluator, rows: Tensor, f_input: Tensor, f_baseline: Tensor
    ) -> Iterator[Verdicts]:
        """Verdicts in order of completion. `rows` [n] are row numbers of the evaluator's problem,
        which may be one of hidden tensors; f_* [n, targets] belong to them.
        """
