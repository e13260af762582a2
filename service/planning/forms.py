"""A job's model as its workers will run it: in closed form, or with the savings that hold on real
rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.engine.prepared import Prepared, assemble, stepping
from integrand.workers.methods.table import method_of
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.choosing import choose, with_alignment
from integrand.workers.rewriting.savings import Savings, without_hoisting


@dataclass(frozen=True, eq=False)
class Form:
    """A model as it runs, and the savings that made it so."""

    prepared: Prepared
    savings: Savings

    @property
    def exact(self) -> bool:
        """Whether the integral is taken in closed form."""
        return self.prepared.network is not None


def choose_form(spec: AttributeSpec, model: Forward, sample: RowTensors) -> Form:
    """The closed form where the method takes one, else step batches with the savings that hold on
    the sample.

    Raises SpecError where the closed form is asked for and there is none.
    """
    method = method_of(spec.accuracy, spec.method)
    wanted = method.needs_closed_form or spec.compute.savings != "none"
    if not wanted or method.closed_form(model, sample, spec.target.transform_of_output) is None:
        return stepping_form(spec, model, sample)
    return _form(spec, model, sample, Savings(), exact=True)


def stepping_form(spec: AttributeSpec, model: Forward, sample: RowTensors) -> Form:
    """Without the closed form."""
    method = method_of(spec.accuracy, spec.method)
    savings = Savings()
    if spec.compute.savings != "none" and not method.needs_plain_model:
        savings = choose(model, sample, method.needs.work)
        if not method.by_path:
            savings = without_hoisting(savings, f"{spec.method.kind} takes single gradients")
        if sample.forward_args:
            savings = without_hoisting(savings, "forward_args differ from row to row")
    return _form(spec, model, sample, savings)


def aligned_form(
    spec: AttributeSpec, model: Forward, sample: RowTensors, savings: Savings
) -> Form | None:
    """With linear layers of whole vectors; None where that is no way."""
    plain = method_of(spec.accuracy, spec.method).needs_plain_model
    if plain or spec.compute.savings == "none":
        return None
    found = with_alignment(model, savings, sample)
    return None if found is None else _form(spec, model, sample, found)


def _form(
    spec: AttributeSpec,
    model: Forward,
    sample: RowTensors,
    savings: Savings,
    *,
    exact: bool = False,
) -> Form:
    transform = spec.target.transform_of_output
    compute = spec.compute
    found = assemble(model, transform, savings, sample.inputs, sample.forward_args, exact=exact)
    device = sample.device.type
    prepared = stepping(found, compute.reduced, device, compile=compute.compile)
    return Form(prepared, savings)
