"""What a kind of baseline makes of its part of the spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import InputPart
from integrand.workers.data.inputs.table import kind_of_input
from integrand.workers.data.prepasses.base import Arrays, PrePass

_STREAMS = 1 << 31
"""Where the streams of baselines begin."""

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

    number   of the input among the job's
    values   the input itself, `[rows, *shape]` in the job's precision, model units
    read     what the baseline's part reads of the source, like `values`; None if nothing
    keys     `[rows, 2]` int64, by which rows draw random numbers; None where nothing is drawn
    counted  what pre-passes found for each input, by name
    member   of a baseline that is made of several; others have no number
    """

    number: int
    values: Tensor
    read: Tensor | None
    keys: Tensor | None
    counted: Mapping[str, Arrays]
    member: int = 0

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def stream(self) -> int:
        """Of random numbers: told apart from those of methods, other inputs and members."""
        return _STREAMS + (self.number << 12) + self.member

    def found(self, prepass: PrePass[Any]) -> np.ndarray:
        """What a pre-pass of its baseline found for this input."""
        return self.counted[prepass.name][self.number]

    def placed(self, values: np.ndarray) -> Tensor:
        """An array in the dtype and on the device of the rows."""
        array = np.ascontiguousarray(values)
        return torch.from_numpy(array).to(self.values.device, self.dtype)


class BaselineKind(ABC, Generic[Part]):
    """One kind of baseline, for its part of the spec.

    An extender overrides `tensor`; `check` where not every value of the part fits every input;
    `prepasses` where the data must be gone over first. How many baselines a row has, whether it
    draws them by its id and which columns are read stands in the part itself (`draws_per_row`,
    `by_key`, `reads`).
    """

    def prepasses(self, part: Part) -> tuple[PrePass[Any], ...]:
        """The passes over data that must be over before any tensor is made."""
        return ()

    def check(self, part: Part, place: Place) -> None:
        """Raises SpecError, before workers start, for a part that does not fit the input."""
        return

    @abstractmethod
    def tensor(self, part: Part, rows: PlaceRows) -> Tensor:
        """`[1, *shape]` where all rows share it, else `[rows, *shape]`, in the dtype of the rows
        and in model units.

        Of a part with K > 1 draws `[K, *shape]` where all rows share them, else
        `[rows × K, *shape]`, the draws of one row after the other.
        """
