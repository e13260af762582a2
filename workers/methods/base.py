"""What a method of attribution is: what it costs, what it asks of a model, and how it explains
rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from integrand.schemas.specs.part import Part
from integrand.schemas.tables import RowStatus
from integrand.workers.closed_form.recognition import ShallowNetwork
from integrand.workers.engine.batching import KEPT_BYTES_PER_ELEMENT
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.verdicts import Ending, Verdicts
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.smooth import FIRST
from integrand.workers.rewriting.flops import JUDGED_WORK, Work, fixed_work

Kind = TypeVar("Kind", bound=Part)
Settle = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes numbers of rows `[n]` with f(x) and f(x') of them `[n, targets]` float64, settles those for
which that says it all (x = x', or f is not finite), and says which of the rows remain, `[n]` bool.
"""
SUM_BYTES = 8
"""One float64 sum."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method takes of a row.

    first_evaluations  those before it is judged for the first time
    kept_bytes         bytes for each element of a row under way
    work               what it is taken to cost where savings are weighed
    """

    first_evaluations: int
    kept_bytes: int
    work: Work


JUDGED = Needs(first_evaluations=FIRST, kept_bytes=KEPT_BYTES_PER_ELEMENT, work=JUDGED_WORK)
"""Of methods that judge rows as they go."""


@dataclass(frozen=True)
class Method(ABC, Generic[Kind]):
    """One way to attribute, for its part of the spec.

    An extender overrides `most_evaluations` and `explain`; or, for a method that sums gradients
    between x' and x, takes `PathMethod` and overrides `integrate`. All else says that every row
    takes the same evaluations, that nothing is kept of a row but one sum, and that there is no
    tolerance: override what is otherwise.

    A method is a function of each row alone. Whatever it draws, it draws from a seed and the row's
    own values. How sure it is goes into the error of its verdicts (a certificate, a standard error;
    NaN where there is none), and `reason` says in words why a row is not ok.
    """

    accuracy: Kind

    needs_closed_form: ClassVar[bool] = False
    """Whether there is no other way than the closed form."""
    varies: ClassVar[bool] = False
    """Whether rows take different numbers of evaluations, so that a plan tries some."""

    @property
    def needs_gradients(self) -> bool:
        """Whether the output must have a gradient; if not, none is asked for before `explain`."""
        return True

    @property
    def needs_plain_model(self) -> bool:
        """Whether it looks into the model, which is then run as it was given: savings that keep the
        function may change what it finds.
        """
        return False

    @property
    def by_path(self) -> bool:
        """Whether each baseline of a row is a case of its own, whose results are averaged; if not,
        the method makes one result of all of them, of single gradients: an affine prefix, which
        gives back one sum of each path, is then not hoisted.
        """
        return True

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, by the keys of its rows."""
        return False

    @property
    def complete(self) -> bool:
        """Whether attributions are promised to add up to f(x) − f(x')."""
        return True

    @property
    def signed(self) -> bool:
        """Whether the sign of an attribution says which way a feature pushed."""
        return True

    @property
    @abstractmethod
    def most_evaluations(self) -> int:
        """Evaluations that a row may take: of gradients, or of f where it needs none."""

    def evaluations_of(self, rows: RowTensors) -> int:
        """Evaluations that one of these rows may take, for all of its baselines."""
        return self.most_evaluations * (rows.draws if self.by_path else 1)

    def rows_of_pass(self, batch_rows: int, draws: int) -> int:
        """Rows that the model is run on at once, where step batches have so many."""
        return batch_rows

    @property
    def needs(self) -> Needs:
        """What is set aside for a row before any is explained."""
        return Needs(
            first_evaluations=self.most_evaluations,
            kept_bytes=SUM_BYTES,
            work=fixed_work(self.most_evaluations),
        )

    @property
    def tolerance(self) -> float | None:
        """Relative error that rows are held to."""
        return None

    def tighter(self, factor: float) -> Method[Kind]:
        """The same method, held to so much smaller a tolerance."""
        return self

    def check(self, forward: Forward, rows: RowTensors) -> None:
        """Raises SpecError for a model, or rows, that the method is not for: seen on a few rows
        before any worker starts.
        """

    def closed_form(
        self, forward: Forward, rows: RowTensors, transform: str = "none"
    ) -> ShallowNetwork | None:
        """The closed form that stands in for the method, if there is one. `transform` is that of
        the output, `rows` are tried.

        Raises SpecError where the method needs one in vain.
        """
        return None

    @abstractmethod
    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        """Verdicts in any order, after f at both ends was given to `settle`.

        evaluator  of the call's problem; whoever makes another lets this one `absorb` it
        prepared   the model, with its affine prefix or its closed form where it has one
        rows       numbers `[n]` of rows whose inputs and baselines are finite

        A verdict about a row that was settled replaces what was settled.
        """

    def reason(self, ending: Ending) -> str | None:
        """Why a row is not ok."""
        if ending.status is RowStatus.nonfinite:
            return "the model's gradient on the path is NaN or inf"
        if ending.status is RowStatus.at_precision_floor:
            return f"error estimate {ending.error:.2g} is what rounding allows"
        return None
