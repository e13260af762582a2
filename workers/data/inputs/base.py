"""What a kind of input makes of its part of the spec and of a source's columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import InputPart
from integrand.workers.data.reasons import Reasons
from integrand.workers.storage.store import Store

Part = TypeVar("Part", bound=InputPart)


@dataclass(frozen=True, eq=False)
class InputArrays:
    """Rows of one input.

    values  `[rows, *shape]` in the job's precision, model units
    ids     what is embedded, `[rows]` or `[rows, length]`; None of an input of numbers
    """

    values: NDArray[Any]
    ids: NDArray[np.int64] | None = None


class InputKind(ABC, Generic[Part]):
    """One kind of input, for its part of the spec.

    An extender overrides `resolve` and `read`; `read_baseline` where columns may hold baselines of
    its rows; `decode` where cells are encoded; `to_model_units` where raw numbers of its columns
    are scaled; `padded_lengths` where rows may vary in length. The columns that it reads, its
    output columns and the modules that embed it stand in the part itself.
    """

    judged_first: ClassVar[bool] = False
    """Whether its reason against a row goes before those of inputs named before it."""

    @abstractmethod
    def resolve(self, schema: pa.Schema, part: Part) -> InputShape:
        """Columns and shape of one row. Raises SpecError for missing, non-numeric or misshapen
        columns.
        """

    @abstractmethod
    def read(
        self,
        table: pa.Table,
        part: Part,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        """Arrays of a table's rows. It never raises: what is wrong with a row goes into `reasons`,
        unless there is one.
        """

    def decode(
        self, store: Store, table: pa.Table, part: Part, tick: Callable[[], None]
    ) -> pa.Table:
        """A table as it was read, with what `read` needs of encoded cells; ahead of time, it may
        be, and in another thread.
        """
        return table

    def read_baseline(
        self,
        table: pa.Table,
        part: Part,
        baseline: BaselinePart,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> NDArray[Any]:
        """What a baseline reads, one for each row: like `values` of the input, or like `ids` where
        it has some. It never raises, like `read`.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no baselines")

    def to_model_units(self, part: Part, values: NDArray[Any], shape: InputShape) -> NDArray[Any]:
        """Raw values `[rows, *shape]` as the model receives them; not a copy if nothing changes."""
        return values

    def padded_lengths(self, table: pa.Table, part: Part) -> NDArray[np.int64]:
        """`[rows]` of an input that varies: the length that each row is padded to, by itself."""
        raise NotImplementedError(f"{type(self).__name__} has one length")
