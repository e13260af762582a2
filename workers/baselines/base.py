"""What a kind of baseline makes of its part of the spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import InputPart
from integrand.workers.data.inputs.table import kind_of_input

Part = TypeVar("Part", bound=BaselinePart)


@dataclass(frozen=True, eq=False, kw_only=True)
class Place:
    """One input for which a baseline shall stand in.

    input  its part of the spec, which says how raw values are scaled
    shape  its columns and the shape of one row
    """

    input: InputPart
    shape: InputShape

    def to_model_units(self, values: np.ndarray) -> np.ndarray:
        """Raw values `[rows, *shape]` scaled like the input."""
        kind = kind_of_input(self.input)
        return kind.to_model_units(self.input, values, self.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaceRows(Place):
    """That input's rows, and all that a baseline may be made of.

    values   the input itself, `[rows, *shape]` in the job's precision, model units
    read     what the baseline's part reads of the source, like `values`; None if nothing
    counted  what its pre-pass found for this input; None if it has none
    """

    values: Tensor
    read: Tensor | None
    counted: np.ndarray | None

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype


class BaselineKind(ABC, Generic[Part]):
    """One kind of baseline, for its part of the spec.

    An extender overrides `tensor`; `check` where not every value of the part fits every input;
    `prepass` where the data must be gone over first; `draws` where a row has several baselines. The
    columns that it reads stand in the part itself (`reads`), and are checked and read like those
    of its input.
    """

    prepass: ClassVar[str | None] = None
    """Name of the pre-pass over the data that must be over before any tensor is made."""

    def check(self, part: Part, place: Place) -> None:
        """Raises SpecError, before workers start, for a part that does not fit the input."""
        return

    @abstractmethod
    def tensor(self, part: Part, rows: PlaceRows) -> Tensor:
        """`[1, *shape]` where all rows share it, else `[rows, *shape]`, in the dtype of the rows
        and in model units.
        """

    def draws(self, part: Part) -> int:
        """Baselines of each row, over which its attributions are averaged."""
        return 1
