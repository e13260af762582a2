"""One job, whole: its parts put together, what they must agree on, and how a spec is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive
from integrand.schemas.specs.arguments import (
    ForwardArg,
)
from integrand.schemas.specs.baselines import Baseline, IdsBaseline, ZeroBaseline
from integrand.schemas.specs.compute import Compute
from integrand.schemas.specs.grouping import unfit
from integrand.schemas.specs.inputs import (
    EmbeddedInput,
    Input,
    TextInput,
    ids_of,
    texts_of,
)
from integrand.schemas.specs.messages import explain
from integrand.schemas.specs.methods import IntegratedGradients, Method, refusal
from integrand.schemas.specs.models import Model
from integrand.schemas.specs.output import Output
from integrand.schemas.specs.part import Name, Part, repeated
from integrand.schemas.specs.source import Source
from integrand.schemas.specs.targets import (
    ScalarTarget,
    Target,
)


class Limits(Part):
    """What a run may contain and still end with exit code 0."""

    max_bad_share: float | None = Field(
        None, ge=0, le=1, description="Share of rows bad_input, nonfinite or failed."
    )
    max_uncertified_share: float | None = Field(
        None, ge=0, le=1, description="Share of rows not_converged."
    )
    max_quarantined: int | None = Field(
        None,
        ge=0,
        description=(
            "Quarantined shards above which the run stops early; default: the others finish."
        ),
    )
    max_prohibited: int | None = Field(
        0, ge=0, description="Rows with a prohibited feature among their reasons; null: any number."
    )


@runtime_checkable
class AnySpec(Protocol):
    """What the spec of a job of any kind says. Fields of each kind's own stand beside these."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> Output: ...

    @property
    def compute(self) -> Compute: ...

    @property
    def limits(self) -> Limits: ...


class AttributeSpec(Part):
    """One attribution job."""

    kind: Literal["attribute"] = "attribute"
    name: Name = Field(description="Names the job's `_latest` pointer.")
    source: Source = Field(description="Where the rows are.")
    model: Model = Field(description="What is explained.")
    inputs: tuple[Input, ...] = Field(
        min_length=1, description="The model's inputs, in the order of its arguments."
    )
    forward_args: tuple[ForwardArg, ...] = Field(
        (), description="Further arguments, passed and not attributed."
    )
    target: Target = Field(default_factory=ScalarTarget, description="Which output is explained.")
    baseline: Baseline = Field(
        default_factory=ZeroBaseline, description="The input that stands for absence."
    )
    method: Method = Field(
        default_factory=IntegratedGradients,
        description="How rows are attributed: a part, its kind alone, or `captum:<Class>`.",
    )
    accuracy: Accuracy = Field(
        default_factory=Adaptive, description="How exact, and how it is checked."
    )
    output: Output = Field(description="Where the run folder goes.")
    compute: Compute = Field(default_factory=Compute, description="How the work is spread.")
    limits: Limits = Field(default_factory=Limits, description="What still counts as success.")

    @property
    def passed(self) -> tuple[ForwardArg, ...]:
        """What rows bring beside inputs and ids, in the order in which it is passed: the forward
        arguments, then what weighs the outputs of the target.
        """
        weights = self.target.weights(self.compute.storage)
        return self.forward_args if weights is None else (*self.forward_args, weights)

    @model_validator(mode="after")
    def _unique_names(self) -> AttributeSpec:
        names = [i.name for i in self.inputs] + [a.name for a in self.forward_args]
        twice = repeated(names)
        if twice:
            raise ValueError(f"inputs and forward_args share a name: {', '.join(twice)}")
        outputs = [name for i in self.inputs for name in i.outputs]
        clash = repeated(outputs)
        if clash:
            raise ValueError(
                f"output columns would clash: attr.{', attr.'.join(clash)}; rename an input"
            )
        return self

    @model_validator(mode="after")
    def _embeddings(self) -> AttributeSpec:
        modules = [m for i in self.inputs for m in i.modules]
        twice = repeated(modules)
        if twice:
            raise ValueError(
                f"one embedding for several inputs: {', '.join(twice)}; stack their columns in one"
                " input"
            )
        if modules and self.model.hides_modules:
            raise ValueError(
                f"inputs of ids need a model of kind factory: {self.model.kind} hides its modules"
            )
        ids, texts = ({i.name for i in kind} for kind in (self.ids_inputs, self.texts))
        for arg in self.forward_args:
            for field, name in (("mask_of", arg.mask_of), ("along", arg.along)):
                if name is not None and name not in ids:
                    raise ValueError(f"`{field}` names no input of ids: {name}")
            if arg.types_of is not None and arg.types_of not in texts:
                raise ValueError(f"`types_of` names no input of texts: {arg.types_of}")
        inheriting = [i.name for i in self.ids_inputs if i.baseline is None]
        if inheriting and not self.baseline.covers_ids:
            raise ValueError(
                f"a {self.baseline.kind} baseline says nothing about ids: give {inheriting[0]}"
                " its own"
            )
        return self

    @model_validator(mode="after")
    def _one_text(self) -> AttributeSpec:
        if len(self.texts) > 1:
            raise ValueError(
                "a job has one input of texts, whose tokens are columns of the output: make ids of"
                f" {self.texts[1].name} beforehand"
            )
        return self

    @model_validator(mode="after")
    def _one_number_of_draws(self) -> AttributeSpec:
        draws = {i.name: b.draws_per_row for i, b in zip(self.inputs, self.baselines, strict=True)}
        several = {name: count for name, count in draws.items() if count > 1}
        if len(set(several.values())) > 1:
            told = ", ".join(f"{count} of {name}" for name, count in several.items())
            raise ValueError(f"inputs have one number of draws, or one baseline each: {told}")
        return self

    @model_validator(mode="after")
    def _exactness(self) -> AttributeSpec:
        wrong = refusal(self.method, self.accuracy, asked=self.accuracy != Adaptive())
        if wrong:
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _until_reasons(self) -> AttributeSpec:
        if not isinstance(self.accuracy, Adaptive) or self.accuracy.until != "reasons":
            return self
        if self.output.reasons is None:
            raise ValueError("accuracy.until: reasons, and no output.reasons to go on for")
        if not isinstance(self.method, IntegratedGradients) or self.draws > 1:
            raise ValueError(
                "accuracy.until: reasons is for integrated_gradients against one baseline: take a"
                " smaller `tolerance` instead"
            )
        return self

    @model_validator(mode="after")
    def _plain_passes(self) -> AttributeSpec:
        changed = self.compute.reduced or ("compile" if self.compute.compile else None)
        if changed and self.method.looks_inside:
            raise ValueError(
                f"{self.method.kind} looks at the model's own layers, which compute runs in another"
                f" form ({changed}): take precision float32 or float64, and compile false"
            )
        return self

    @model_validator(mode="after")
    def _reporting(self) -> AttributeSpec:
        wrong = unfit(self.output, self.inputs)
        if wrong:
            raise ValueError(wrong)
        if self.output.mean_gradients and not isinstance(self.method, IntegratedGradients):
            raise ValueError(
                f"output.mean_gradients are those of integrated_gradients: {self.method.kind} has"
                " none"
            )
        if self.output.spread and self.draws == 1:
            raise ValueError("output.spread is over several baselines, and rows have one")
        return self

    @property
    def ids_inputs(self) -> tuple[EmbeddedInput, ...]:
        """The inputs that are ids, or become some, in order."""
        return ids_of(self.inputs)

    @property
    def texts(self) -> tuple[TextInput, ...]:
        """The inputs that are texts; at most one."""
        return texts_of(self.inputs)

    @property
    def baselines(self) -> tuple[Baseline | IdsBaseline, ...]:
        """The baseline of each input, the job's where the input names none."""
        return tuple(i.baseline or self.baseline for i in self.inputs)

    @property
    def inputs_alone(self) -> AttributeSpec:
        """The same inputs, of which nothing else is asked."""
        plain = tuple(i.model_copy(update={"baseline": None}) for i in self.inputs)
        asked: dict[str, object] = {
            "inputs": plain,
            "forward_args": (),
            "target": ScalarTarget(),
            "baseline": ZeroBaseline(),
        }
        return self.model_copy(update=asked)

    def moved(self, absolute: Callable[[str], str]) -> AttributeSpec:
        """The same job with every URI that a baseline names as workers will see it."""
        if not any(baseline.uris for baseline in self.baselines):
            return self
        inputs = [
            i
            if i.baseline is None
            else i.model_copy(update={"baseline": i.baseline.moved(absolute)})
            for i in self.inputs
        ]
        moved = {"inputs": tuple(inputs), "baseline": self.baseline.moved(absolute)}
        return self.model_copy(update=moved)

    @property
    def inputs_with_baselines(self) -> tuple[Input, ...]:
        """The inputs, each with its baseline."""
        return tuple(
            one.model_copy(update={"baseline": baseline})
            for one, baseline in zip(self.inputs, self.baselines, strict=True)
        )

    @property
    def draws(self) -> int:
        """Baselines of each row, over which its attributions are averaged."""
        return max(baseline.draws_per_row for baseline in self.baselines)


JobSpec = AttributeSpec
_ADAPTER: TypeAdapter[AttributeSpec] = TypeAdapter(AttributeSpec)


def published_schema() -> dict[str, Any]:
    """JSON Schema of a job spec, for editors and CI."""
    return _ADAPTER.json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def parse_spec(fields: object, *, where: str = "spec") -> AttributeSpec:
    """Validate a loaded YAML or JSON mapping. Raises SpecError that names each bad field and the
    nearest good one.
    """
    if not isinstance(fields, dict):
        raise SpecError(where, expected="a mapping of fields", seen=type(fields).__name__)
    try:
        return _ADAPTER.validate_python(_tuples(fields))
    except ValidationError as error:
        found = error.errors(include_url=False)
        deeper = [e for e in found if e["type"] != "too_short" or len(found) == 1]
        problems = "; ".join(explain(e, AttributeSpec) for e in deeper)
        raise SpecError(
            where,
            expected="a valid job spec",
            seen=problems,
            next_step="fix the fields named; `integrand schema` prints them all",
        ) from None


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(v) for v in value)
    return value
