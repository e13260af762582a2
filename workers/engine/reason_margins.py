"""How far the reasons of tracks are from being others: what `until: reasons` holds tracks to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from integrand.workers.reason_codes.candidates import Candidates


@dataclass(frozen=True, eq=False, kw_only=True)
class ReasonSums:
    """What may be a reason, on a device: sums of attributions, each with its sign turned to where
    reasons push.

    k        most reasons of a row
    sign     1 where they push the output higher, −1 where lower
    members  [width, sums] int64: the features of each sum, in order; −1 where it has no more
    """

    k: int
    sign: int
    members: Tensor

    @staticmethod
    def of(candidates: Candidates) -> ReasonSums:
        members = [candidate.members for candidate in candidates.each]
        width = max((len(own) for own in members), default=0)
        filled = [[*own, *[-1] * (width - len(own))] for own in members]
        columns = torch.tensor(filled, dtype=torch.int64).reshape(len(members), width)
        return ReasonSums(
            k=min(candidates.k, max(1, len(members))),
            sign=candidates.sign,
            members=columns.T.contiguous(),
        )

    def to(self, device: torch.device) -> ReasonSums:
        return ReasonSums(k=self.k, sign=self.sign, members=self.members.to(device))

    def margin(self, attributions: Tensor, still: Tensor) -> Tensor:
        """The least ‖δ‖₁ of an error δ of attributions `[tracks, features]` that may make their
        reasons others, [tracks] float64; infinite where none can. The rule and its proof stand in
        `reason_codes.separation`.

        `still` are features that are as in the baseline: nothing can be wrong with their zeros.
        """
        pushes, moved = self._pushes(attributions, still)
        short = max(0, self.k + 1 - pushes.shape[1])
        filled = pad(torch.where(moved, pushes, -torch.inf), (0, short), value=-torch.inf)
        last, following = filled.topk(self.k + 1, dim=1).values[:, -2:].unbind(1)
        sides = torch.where(moved, pushes.abs(), torch.inf)
        nearest = pad(sides, (0, 1), value=torch.inf).amin(1)
        return torch.where(last > 0, last - following.clamp(min=0), nearest)

    def _pushes(self, attributions: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
        """The sums, and whether any feature of each moved, `[tracks, sums]`.

        Added up feature by feature: a track's bits do not depend on who is beside it.
        """
        shape = len(attributions), self.members.shape[1]
        pushes = torch.zeros(shape, dtype=torch.float64, device=attributions.device)
        moved = torch.zeros(shape, dtype=torch.bool, device=attributions.device)
        for members in self.members:
            there, places = members >= 0, members.clamp(min=0)
            own = self.sign * attributions[:, places].double()
            pushes = torch.where(there, pushes + own, pushes)
            moved |= there & ~still[:, places]
        return pushes, moved
