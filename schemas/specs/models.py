"""What is explained: a factory, an exported or a scripted program."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from integrand.schemas.specs.part import Part


class FactoryModel(Part):
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
        None, description="A .safetensors file or a weights-only state dict (.pt, .pth)."
    )
    code: tuple[str, ...] = Field(
        (),
        description=(
            "Wheels, folders or .py files that hold the entrypoint; shipped to the workers."
        ),
    )


class ExportedModel(Part):
    """A torch.export program (.pt2). It is code: it must be trusted."""

    kind: Literal["torch_export"] = "torch_export"
    uri: str = Field(description="The .pt2 file, exported with a dynamic first dimension.")


class ScriptedModel(Part):
    """A TorchScript program. It is code: it must be trusted."""

    kind: Literal["torchscript"] = "torchscript"
    uri: str = Field(description="The TorchScript file.")


Model = Annotated[FactoryModel | ExportedModel | ScriptedModel, Field(discriminator="kind")]
