"""Who is measured: Integrand, Captum, the articles' loop and SHAP, each a callable from a case to
its attributions.

Peers run unmodified, with frozen weights. Every contender is picklable, so that a fresh process can
be asked for its peak memory.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from references import Reference, relative_error
from torch import Tensor, nn
from zoo import INSTALL, Case, Missing, buckets

from integrand.schemas.specs.accuracy import Accuracy
from integrand.workers import Attribution, attribute, prepare
from integrand.workers.engine.prepared import Prepared

LADDER = (5, 10, 20, 50, 100, 200, 500)
"""Step counts among which a user with a reference at hand would choose."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a contender found for `case.repeated()`.

    attributions  `[rows, ...]` like the repeated inputs, NaN where a row has none
    evaluations   gradient evaluations, `[rows]`
    certified     `[rows]` bool: the contender vouches for the row; None where it never does
    """

    attributions: Tensor
    evaluations: Tensor
    certified: Tensor | None = None


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    def __call__(self, case: Case) -> Outcome: ...


@dataclass(frozen=True)
class Integrand:
    """`integrand.workers.attribute`; rows of mixed lengths bucket by bucket.

    With `opaque` it gets a function in place of the module: nothing can be known of it but its
    values.
    """

    accuracy: Accuracy
    name: str
    opaque: bool = False

    def __call__(self, case: Case) -> Outcome:
        parts = []
        for places, found in self.explain(case):
            assert isinstance(found.attributions, Tensor)
            attributions = found.attributions.flatten(0, 1) if case.outputs else found.attributions
            certified = torch.tensor([status == "ok" for status in found.status])
            outcome = Outcome(attributions, found.evaluations.flatten(), certified)
            parts.append((_repeats(places, case.repeats), outcome))
        return _gather(case.repeated(), parts)

    def explain(self, case: Case) -> list[tuple[Tensor, Attribution]]:
        """What is found of every bucket, with the row numbers of `case` that are in it."""
        return [(places, self._explain_bucket(part)) for places, part in buckets(case)]

    def _explain_bucket(self, case: Case) -> Attribution:
        model = case.model
        forward = (lambda *arguments: model(*arguments)) if self.opaque else self._planned(case)
        return attribute(
            forward,
            case.inputs,
            baselines=case.baselines,
            forward_args=case.forward_args,
            target=list(case.outputs) or case.target,
            accuracy=self.accuracy,
        )

    def _planned(self, case: Case) -> Prepared:
        """The model as a job's plan leaves it, made at the first call: contestants are timed from
        the second on.
        """
        key = (id(case.model), tuple(case.inputs.shape[1:]), self.name)
        if key not in _PLANNED:
            few = case.take(slice(0, 4))
            planned = prepare(
                case.model,
                few.inputs,
                baselines=few.baselines,
                forward_args=few.forward_args,
                target=list(case.outputs) or few.target,
                accuracy=self.accuracy,
            )
            _PLANNED[key] = (case.model, planned)
        return _PLANNED[key][1]


_PLANNED: dict[tuple[int, tuple[int, ...], str], tuple[nn.Module, Prepared]] = {}
"""With the model itself, so that no other one can take its id."""


@dataclass(frozen=True)
class Captum:
    """`captum.attr.IntegratedGradients` with its default rule: `rows` of a call, `batch`
    evaluations at once.

    Rows of mixed lengths come padded: to the longest of all, or, with `by_length`, sorted, to the
    longest of the call. Several outputs are several runs: it has no other way.
    """

    steps: int = 50
    rows: int = 256
    batch: int = 256
    by_length: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        return f"Captum, {self.steps} nodes{', sorted by length' * self.by_length}{self.note}"

    def __call__(self, case: Case) -> Outcome:
        from captum.attr import IntegratedGradients

        method = IntegratedGradients(case.model)
        order = torch.arange(case.rows)
        whole = case.repeated()
        if case.lengths is not None:
            case = case.cut(int(case.lengths.max()))
            order = case.lengths.argsort() if self.by_length else order
        found = [
            (places, self._of_rows(method.attribute, case.take(places)))
            for places in order.split(self.rows)
        ]
        return _gather(whole, [(_repeats(places, case.repeats), part) for places, part in found])

    def _of_rows(self, explain: Callable[..., Tensor], case: Case) -> Outcome:
        if self.by_length and case.lengths is not None:
            case = case.cut(int(case.lengths.max()))
        targets = case.outputs or ((0 if case.target is None else case.target),)
        arguments = case.forward_args or None
        found = [
            explain(
                case.inputs,
                case.baselines,
                target=target,
                additional_forward_args=arguments,
                n_steps=self.steps,
                internal_batch_size=max(self.batch, case.rows),
            )
            for target in targets
        ]
        together = torch.stack(found, 1).flatten(0, 1)
        return Outcome(together, torch.full((len(together),), self.steps))


@dataclass(frozen=True)
class PlainLoop:
    """The function of the articles: a row at a time, a step at a time, right sums."""

    steps: int = 100

    @property
    def name(self) -> str:
        return f"the articles' loop, {self.steps} right steps"

    def __call__(self, case: Case) -> Outcome:
        repeated = case.repeated()
        found = torch.cat(
            [self._of_row(repeated.take(slice(row, row + 1))) for row in range(repeated.rows)]
        )
        return Outcome(found, torch.full((repeated.rows,), self.steps))

    def _of_row(self, case: Case) -> Tensor:
        x, blank, mean = case.inputs, case.baselines, torch.zeros_like(case.inputs)
        for step in range(1, self.steps + 1):
            at = (blank + step / self.steps * (x - blank)).requires_grad_()
            (gradient,) = torch.autograd.grad(
                case.value(at, case.forward_args, case.target).sum(), at
            )
            mean += gradient / self.steps
        return (x - blank) * mean


@dataclass(frozen=True)
class Shap:
    """`shap.GradientExplainer`: expected gradients over `background`, by its 200 samples.

    Its attributions are those of a random choice of background rows and path points for each row.
    """

    background: Tensor
    samples: int = 200

    @property
    def name(self) -> str:
        return f"SHAP GradientExplainer, {len(self.background)} baselines, {self.samples} samples"

    def __call__(self, case: Case) -> Outcome:
        if importlib.util.find_spec("shap") is None:
            raise Missing(f"needs shap: {INSTALL}")
        from shap import GradientExplainer

        explainer = GradientExplainer(case.model, self.background)
        found = explainer.shap_values(case.inputs, nsamples=self.samples, rseed=0)
        return Outcome(
            torch.as_tensor(found).reshape(case.inputs.shape),
            torch.full((case.rows,), self.samples),
        )


def tuned(
    case: Case, exact: Reference, tolerance: float, *, by_length: bool = False
) -> Captum | None:
    """The cheapest Captum that meets the tolerance on every row of a calibration case: an oracle's
    choice.

    The fastest sizes, then the fewest nodes of LADDER. None where 500 nodes do not meet it.
    """
    fastest = best_sizes(case, by_length=by_length)
    for steps in LADDER:
        candidate = replace(fastest, steps=steps, note=f", tuned for {tolerance:g}")
        if relative_error(candidate(case).attributions, exact.attributions).max() <= tolerance:
            return candidate
    return None


def best_sizes(case: Case, *, by_length: bool = False) -> Captum:
    """Captum-50 with the fastest of `case.sizes`: the better of two tries each, at fewer nodes to
    save time.
    """
    candidates = [Captum(20, rows, batch, by_length) for rows, batch in case.sizes]
    fastest = min(
        candidates, key=lambda contender: min(_seconds(contender, case) for _ in range(2))
    )
    return replace(fastest, steps=50)


def _seconds(contender: Contender, case: Case) -> float:
    started = time.perf_counter()
    contender(case)
    return time.perf_counter() - started


def _repeats(places: Tensor, repeats: int) -> Tensor:
    return (places[:, None] * repeats + torch.arange(repeats)).flatten()


def _gather(case: Case, parts: list[tuple[Tensor, Outcome]]) -> Outcome:
    """Outcomes of some rows each, back in the order of the case; padding gets zeros."""
    attributions = torch.zeros_like(case.inputs)
    evaluations = torch.zeros(case.rows, dtype=torch.int64)
    certified = torch.zeros(case.rows, dtype=torch.bool)
    for places, part in parts:
        attributions[(places, slice(0, part.attributions.shape[1]))] = part.attributions
        evaluations[places] = part.evaluations.long()
        if part.certified is not None:
            certified[places] = part.certified
    return Outcome(
        attributions, evaluations, certified if parts[0][1].certified is not None else None
    )
