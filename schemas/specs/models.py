"""What is explained: a factory, an exported or a scripted program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from integrand.schemas.specs.part import Part, kind_of


class ModelPart(Part, ABC):
    """What every kind of model says of itself before anything of it runs."""

    hides_modules: ClassVar[bool] = True
    """Whether its modules cannot be found by name, as inputs of ids need theirs."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """URIs of its weights or program: the run is pinned to their contents."""

    @property
    def module(self) -> str | None:
        """The Python module that its code is in; None where that is in its files."""
        return None

    @property
    def trusted_as(self) -> str:
        """What the operator has to name, or a prefix of it, before its code may run."""
        return self.module or str(kind_of(type(self)))

    @property
    def where(self) -> str:
        """Where it stands in the spec, for messages."""
        return "model"

    @property
    def shipped(self) -> tuple[str, ...]:
        """URIs of code that travels to the workers."""
        return ()

    @abstractmethod
    def moved(self, absolute: Callable[[str], str]) -> Self:
        """The same model, each URI as `absolute` gives it."""


class FactoryModel(ModelPart):
    """A function that builds the module, and plain weights for it. The function is code: it must be
    trusted.
    """

    kind: Literal["factory"] = "factory"
    entrypoint: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`package.module:callable` that returns a torch Module.",
    )
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Keyword arguments of the callable."
    )
    weights: str | None = Field(
        None,
        description=(
            "A .safetensors file, a weights-only state dict (.pt, .pth), or a checkpoint that holds"
            " one (Lightning's .ckpt). Prefixes such as `module.` are left out where the rest fits."
        ),
    )
    code: tuple[str, ...] = Field(
        (),
        description=(
            "Wheels, folders or .py files that hold the entrypoint; shipped to the workers."
        ),
    )

    hides_modules: ClassVar[bool] = False

    @property
    def where(self) -> str:
        return f"model.entrypoint {self.entrypoint}"

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.weights is None else (self.weights,)

    @property
    def module(self) -> str:
        return self.entrypoint.split(":")[0]

    @property
    def shipped(self) -> tuple[str, ...]:
        return self.code

    def moved(self, absolute: Callable[[str], str]) -> Self:
        weights = None if self.weights is None else absolute(self.weights)
        code = tuple(absolute(uri) for uri in self.code)
        return self.model_copy(update={"weights": weights, "code": code})


class ExportedModel(ModelPart):
    """A torch.export program (.pt2). It is code: it must be trusted."""

    kind: Literal["torch_export"] = "torch_export"
    uri: str = Field(description="The .pt2 file, exported with a dynamic first dimension.")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.uri,)

    def moved(self, absolute: Callable[[str], str]) -> Self:
        return self.model_copy(update={"uri": absolute(self.uri)})


class ScriptedModel(ModelPart):
    """A TorchScript program. It is code: it must be trusted."""

    kind: Literal["torchscript"] = "torchscript"
    uri: str = Field(description="The TorchScript file.")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.uri,)

    def moved(self, absolute: Callable[[str], str]) -> Self:
        return self.model_copy(update={"uri": absolute(self.uri)})


Model = Annotated[FactoryModel | ExportedModel | ScriptedModel, Field(discriminator="kind")]
