"""What is reported of rows that is not their attributions alone, as the engine makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from integrand.schemas.tables import Role


@dataclass(frozen=True, eq=False, kw_only=True)
class Reporting:
    """The blocks that are reported of rows, and how elements are added up.

    roles, shapes  of each block, `[*shape]` of one row
    members        number of the sum that each element of a row goes into, int64 `[1, elements]`
                   where all rows share it, else `[rows, elements]`; None where nothing is added up
    sums           how many of them a row has
    """

    roles: tuple[Role, ...]
    shapes: tuple[tuple[int, ...], ...]
    members: Tensor | None = None
    sums: int = 0

    @property
    def summed_role(self) -> Role:
        """Of the blocks that hold sums: beside those of features, or instead of them."""
        return "group" if "group" in self.roles else "attr"

    @property
    def mean_gradients(self) -> bool:
        return "mean_gradient" in self.roles

    def each(self, change: Callable[[Tensor], Tensor]) -> Reporting:
        """The same change to what rows have of their own."""
        if self.members is None:
            return self
        return replace(self, members=change(self.members))

    def summed(self, values: Tensor, rows: Tensor) -> Tensor:
        """Elements `[n, elements]` of these rows, added up by group: `[n, sums]`."""
        assert self.members is not None
        shared = self.members.shape[0] == 1
        members = self.members.expand_as(values) if shared else self.members[rows]
        found = values.new_zeros(len(values), self.sums)
        if not values.is_cuda:
            return found.scatter_add_(1, members, values)
        # scatter_add's atomics would add in any order; this one sorts
        index = torch.arange(len(values), device=values.device)[:, None].expand_as(members)
        return found.index_put_((index, members), values, accumulate=True)
