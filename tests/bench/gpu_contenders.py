"""Who takes part on a GPU: the card itself at its limit, Captum, and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_bouts import Bout, explained, seconds_of
from torch import Tensor
from zoo import Case

from integrand.schemas.specs.accuracy import Accuracy, FixedSteps
from integrand.workers import Attribution, attribute, prepare

Forward = Callable[..., Tensor]
FIFTY = FixedSteps(rule="gauss_legendre", steps=50)


@dataclass(frozen=True, eq=False)
class Limit:
    """Gradients of one batch, over and over: points on the paths of some rows."""

    case: Case
    rows: Tensor
    points: Tensor

    @property
    def batch(self) -> int:
        return len(self.rows)

    def run(self) -> None:
        values = explained(self.case, self.points, self.rows)
        torch.autograd.grad(values.sum(), self.points)

    def seconds(self, least: float) -> float:
        """Of one gradient, in a turn of at least so many seconds."""
        device = self.points.device
        once = seconds_of(self.run, device)
        times = max(1, min(200, round(least / once)))
        taken = seconds_of(lambda: [self.run() for _ in range(times)], device)
        return taken / times / self.batch


def limit_at(case: Case, batch: int) -> Limit:
    rows = torch.arange(batch, device=case.inputs.device) % case.rows
    shape = (batch, *[1] * (case.inputs.ndim - 1))
    places = torch.linspace(0, 1, batch, device=rows.device).reshape(shape)
    points = torch.lerp(case.baselines, case.inputs[rows], places)
    return Limit(case, rows, points.requires_grad_())


def best_limit(case: Case, batches: tuple[int, ...], least: float) -> Limit:
    """At the fastest batch that fits."""
    found: list[tuple[float, Limit]] = []
    for batch in batches:
        try:
            limit = limit_at(case, batch)
            limit.run()
            found.append((limit.seconds(least), limit))
        except torch.OutOfMemoryError:
            break
    return min(found, key=lambda one: one[0])[1]


# --- contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """Attributions `[rows, ...]`, evaluations per row; ours: which rows are certified, evaluations
    that only filled batches up, and the batch.
    """

    attributions: Tensor
    evaluations: float
    certified: Tensor | None = None
    padded: int | None = None
    batch: int = 0


@dataclass(frozen=True, eq=False)
class Captum:
    case: Case
    batch: int
    name: str = "Captum, 50 nodes"

    def __call__(self) -> Outcome:
        from captum.attr import IntegratedGradients

        case = self.case
        found = IntegratedGradients(case.model).attribute(
            case.inputs,
            case.baselines,
            target=0 if case.target is None else case.target,
            additional_forward_args=case.forward_args or None,
            n_steps=50,
            method="gausslegendre",
            internal_batch_size=max(self.batch, case.rows),
        )
        return Outcome(found, 50.0, batch=self.batch)


@dataclass(frozen=True, eq=False)
class Ours:
    """`attribute`, of `forward` in place of the case's model."""

    case: Case
    forward: Forward
    accuracy: Accuracy
    name: str

    def __call__(self) -> Outcome:
        found: Attribution = attribute(
            self.forward,
            self.case.inputs,
            baselines=self.case.baselines,
            target=self.case.target,
            forward_args=self.case.forward_args,
            accuracy=self.accuracy,
        )
        assert isinstance(found.attributions, Tensor)
        vouches = not isinstance(self.accuracy, FixedSteps)
        return Outcome(
            found.attributions,
            float(found.evaluations.double().mean()),
            torch.tensor([status == "ok" for status in found.status]) if vouches else None,
            found.padded,
            found.batch_rows,
        )


def ours(bout: Bout, case: Case, accuracy: Accuracy, name: str = "") -> Ours:
    """With what a plan would make of the model; or with a function that hides it."""
    model = case.model
    if bout.opaque:
        return Ours(case, lambda *arguments: model(*arguments), accuracy, name)
    few = case.take(slice(0, 8))
    prepared = prepare(
        model,
        few.inputs,
        baselines=few.baselines,
        target=few.target,
        forward_args=few.forward_args,
        accuracy=accuracy,
    )
    return Ours(case, prepared, accuracy, name)


def best_captum(case: Case, batches: tuple[int, ...]) -> Captum | None:
    """The fastest of a few internal batches, the first call of each aside."""
    device = case.inputs.device
    found: list[tuple[float, Captum]] = []
    for batch in batches:
        contender = Captum(case, batch)
        try:
            contender()
            found.append((seconds_of(contender, device), contender))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(found, key=lambda one: one[0])[1] if found else None


Contender = Captum | Ours


def contenders(bout: Bout, case: Case) -> list[Contender]:
    captum = best_captum(case, bout.captum)
    same = ours(bout, case, FIFTY, "the same 50 nodes")
    certified = ours(bout, case, bout.adaptive, f"adaptive {bout.tolerance:g}")
    return [captum, same, certified] if captum else [same, certified]
