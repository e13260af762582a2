"""`IntegratedGradients` with the signature that Captum gave it: code written for that class runs
here after a change of its import.

What is computed is `attribute`'s: a plain rule for Captum's arguments, or certified rows where
`accuracy` asks for them.
"""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from pydantic import ValidationError
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, FixedSteps
from integrand.schemas.specs.part import Rule
from integrand.schemas.tables import CONVERGED, RowStatus
from integrand.workers.engine.results import Attribution, Tensors
from integrand.workers.methods.arguments import Baselines, row_tensors
from integrand.workers.methods.attribution import attribute
from integrand.workers.methods.probing import check_eval
from integrand.workers.models.outputs import Forward, TargetLike, check_output, on_copies, select

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | None
"""A target as Captum takes it: a list has one entry for each row."""
_DEFAULT_STEPS, _DEFAULT_METHOD = 50, "gausslegendre"
_RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {
        "gausslegendre": "gauss_legendre",
        "riemann_left": "left",
        "riemann_middle": "midpoint",
        "riemann_right": "right",
        "riemann_trapezoid": "trapezoid",
    }
)


class IntegratedGradients:
    """Integrated Gradients, called as Captum's class is. Sundararajan, Taly & Yan 2017.

    forward_func        from inputs and additional arguments to outputs `[rows]` or `[rows, ...]`
    multiply_by_inputs  False gives the mean gradient on the path, without x − x'
    """

    def __init__(self, forward_func: Forward, multiply_by_inputs: bool = True) -> None:
        self.forward_func = forward_func
        self._multiply_by_inputs = multiply_by_inputs

    def attribute(
        self,
        inputs: Tensors,
        baselines: Baselines = None,
        target: Target = None,
        additional_forward_args: object = None,
        n_steps: int = _DEFAULT_STEPS,
        method: str = _DEFAULT_METHOD,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        accuracy: Accuracy | None = None,
    ) -> Tensors | tuple[Tensors, Tensor]:
        """Attributions like `inputs`, a tuple for a tuple; with them, if asked for, the deltas
        `[rows]`: Σ attributions − (f(x) − f(x')).

        n_steps, method      evaluations of a row, and Captum's name of the rule. The weights of
                             `riemann_trapezoid` sum to 1; in Captum 0.9 to 1 − 1/n_steps
        internal_batch_size  rows of a step batch, of any size
        accuracy             in place of n_steps and method: Adaptive certifies every row, and a
                             warning says how many it could not

        Raises SpecError or DataError (ValueErrors) that say what to change.
        """
        found = self.attribute_with_status(
            inputs,
            baselines,
            target,
            additional_forward_args,
            n_steps,
            method,
            internal_batch_size,
            accuracy=accuracy,
        )
        if accuracy is not None:
            _warn_of_uncertain(found)
        if not return_convergence_delta:
            return found.attributions
        first = inputs[0] if isinstance(inputs, tuple) else inputs
        return found.attributions, found.gap.to(first)

    def attribute_with_status(
        self,
        inputs: Tensors,
        baselines: Baselines = None,
        target: Target = None,
        additional_forward_args: object = None,
        n_steps: int = _DEFAULT_STEPS,
        method: str = _DEFAULT_METHOD,
        internal_batch_size: int | None = None,
        *,
        accuracy: Accuracy | None = None,
    ) -> Attribution:
        """The same with all that is known of each row: its status and reason, f(x) and f(x'), the
        gap, which is Captum's delta, and the estimated error.
        """
        check_eval(self.forward_func)
        exactness = _exactness(n_steps, method, accuracy)
        forward, arguments = _with_tensors_alone(self.forward_func, additional_forward_args)
        targets = _target(target)
        if self._multiply_by_inputs:
            return attribute(
                forward,
                inputs,
                baselines=baselines,
                target=targets,
                forward_args=arguments,
                accuracy=exactness,
                batch_rows=internal_batch_size,
            )
        if accuracy is not None:
            raise SpecError(
                "accuracy",
                expected="multiply_by_inputs=True: what is certified adds up to f(x) − f(x')",
                seen="multiply_by_inputs=False",
                next_step="take n_steps and method, or multiply_by_inputs=True",
            )
        rows = row_tensors(inputs, baselines, arguments, targets).expanded()
        ones = tuple(torch.ones_like(x) for x in rows.inputs)
        return attribute(
            _gradients_alone(forward, len(ones)),
            ones if isinstance(inputs, tuple) else ones[0],
            target=targets,
            forward_args=(*rows.inputs, *rows.baselines, *arguments),
            accuracy=exactness,
            batch_rows=internal_batch_size,
        )

    def compute_convergence_delta(
        self,
        attributions: Tensors,
        start_point: Baselines,
        end_point: Tensors,
        target: Target = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Σ attributions − (f(end) − f(start)), `[rows]`; arguments as those of `attribute`."""
        forward, arguments = _with_tensors_alone(self.forward_func, additional_forward_args)
        rows = row_tensors(end_point, start_point, arguments, _target(target)).expanded()
        table = None if rows.target is None else rows.target[:, 0]

        def value(points: Sequence[Tensor]) -> Tensor:
            out = on_copies(forward, *points, *rows.forward_args)
            return select(check_output(out, rows.rows, table), table).double()

        with torch.no_grad():
            change = value(rows.inputs) - value(rows.baselines)
            parts = attributions if isinstance(attributions, tuple) else (attributions,)
            sums = [part.double().reshape(rows.rows, -1).sum(1) for part in parts]
        return (torch.stack(sums).sum(0) - change).to(rows.inputs[0])

    def has_convergence_delta(self) -> bool:
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply_by_inputs


def _exactness(n_steps: int, method: str, accuracy: Accuracy | None) -> Accuracy:
    """What Captum's arguments ask for, or `accuracy` where that is given."""
    if accuracy is not None:
        if (n_steps, method) != (_DEFAULT_STEPS, _DEFAULT_METHOD):
            raise SpecError(
                "accuracy",
                expected="either accuracy, or n_steps and method",
                seen=f"both: n_steps={n_steps}, method={method!r}",
                next_step="leave out n_steps and method",
            )
        return accuracy
    if method not in _RULES:
        near = difflib.get_close_matches(method, list(_RULES), 1, 0.4)
        raise SpecError(
            "method",
            expected=f"one of {', '.join(_RULES)}",
            seen=repr(method),
            next_step=f"did you mean {near[0]!r}?" if near else "leave it out",
        )
    # Captum counts the nodes of the trapezoidal rule, both ends among them
    steps = n_steps - 1 if method == "riemann_trapezoid" else n_steps
    try:
        return FixedSteps(rule=_RULES[method], steps=steps)
    except ValidationError as error:
        least = 2 if method == "riemann_trapezoid" else 1
        raise SpecError(
            "n_steps",
            expected=f"a whole number from {least}; at most 1000 for gausslegendre, else 10000",
            seen=repr(n_steps),
            next_step="take accuracy=Adaptive(tolerance=…) where many steps are needed",
        ) from error


def _target(target: Target) -> TargetLike:
    """A list is one target for each row here, and one number in a tensor is for all."""
    if isinstance(target, list):
        try:
            return torch.tensor(target)
        except (TypeError, ValueError) as error:
            raise SpecError(
                "target",
                expected="a list with an index, or a tuple of one length, for each row",
                seen=repr(target)[:80],
                next_step="name one output of each row",
            ) from error
    if isinstance(target, Tensor) and target.numel() == 1:
        return target.reshape(())
    return target


def _with_tensors_alone(forward: Forward, additional: object) -> tuple[Forward, tuple[Tensor, ...]]:
    """The forward as a function of inputs and tensors `[rows, ...]`, and these: all other arguments
    are the same in every call.
    """
    given = additional if isinstance(additional, tuple) else (additional,)
    given = () if additional is None else given
    tensors = tuple(a for a in given if _has_rows(a))
    if len(tensors) == len(given):
        return forward, tensors

    def with_others(*arguments: Tensor) -> Tensor:
        first = len(arguments) - len(tensors)
        rows = iter(arguments[first:])
        others = [next(rows) if _has_rows(a) else a for a in given]
        return forward(*arguments[:first], *others)

    return with_others, tensors


def _has_rows(argument: object) -> bool:
    return isinstance(argument, Tensor) and argument.ndim > 0


def _gradients_alone(forward: Forward, inputs: int) -> Callable[..., Tensor]:
    """f at x' + α(x − x') as a function of α, one for each element and of `inputs` inputs, whose
    gradient is that with respect to x: integrated over α from 0 to 1 it is the mean gradient.
    """

    def at(*arguments: Tensor) -> Tensor:
        alphas, ends = arguments[:inputs], arguments[inputs : 2 * inputs]
        starts, others = arguments[2 * inputs : 3 * inputs], arguments[3 * inputs :]
        points = []
        for alpha, end, start in zip(alphas, ends, starts, strict=True):
            place = alpha.detach() * (end - start) + start
            points.append(place + (alpha - alpha.detach()))
        return forward(*points, *others)

    return at


def _warn_of_uncertain(found: Attribution) -> None:
    counts = Counter(map(str, found.status))
    told_of = (*CONVERGED, RowStatus.unchecked)
    uncertain = {name: n for name, n in counts.items() if name not in told_of}
    if uncertain:
        told = ", ".join(f"{n} {name}" for name, n in sorted(uncertain.items()))
        warnings.warn(
            f"{told} of {len(found.status)} rows are not certified: attribute_with_status says"
            " which, and why",
            stacklevel=3,
        )
