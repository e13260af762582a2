"""What a kind of job is to this wing, which itself knows of tasks with an id and rows alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

from integrand.schemas.records import JobManifest, JobPlan, Quarantined, TaskFooter
from integrand.service.operator import Operator
from integrand.service.planning.request import AnyRequest
from integrand.service.pools.base import Mapper
from integrand.service.runs.footers import Folder, Held, Totals
from integrand.workers.models.code import CodeBundle
from integrand.workers.storage.store import Store
from integrand.workers.task_workers import WorkerSetup

OnePlan = TypeVar("OnePlan", bound=JobPlan[Any])
OneTotals = TypeVar("OneTotals", bound=Totals)
OneManifest = TypeVar("OneManifest", bound=JobManifest)


class JobKind(ABC, Generic[OnePlan, OneTotals, OneManifest]):
    """One kind of job: how it is planned, what its workers are made from, and what their footers
    add up to. Resume, exactly-once, attempts and quarantine come with it.
    """

    plan: type[OnePlan]
    manifest: type[OneManifest]

    # --- planning --------------------------------------------------------------------------

    @abstractmethod
    def make_plan(self, request: AnyRequest[Any], pool: Mapper) -> tuple[OnePlan, CodeBundle]:
        """Resolve a spec, and pack the code that its workers need."""

    def check_new(self, store: Store, plan: OnePlan) -> None:
        """What is held against all rows once, before the run folder is made."""
        return

    @abstractmethod
    def renew(self, stored: OnePlan, fresh: OnePlan) -> OnePlan:
        """A stored plan with what is no part of its identity as it is asked for today."""

    # --- workers ---------------------------------------------------------------------------

    @abstractmethod
    def stored_code(self, run: Folder[OnePlan], trusted: tuple[str, ...]) -> CodeBundle:
        """The code of a stored run. Raises for what is not trusted here, or not as planned."""

    @abstractmethod
    def make_setup(
        self, run: Folder[OnePlan], code: CodeBundle, operator: Operator, *, allow_mixed: bool
    ) -> WorkerSetup:
        """What workers of a run are made from. IntegrityError where they may not go on here.

        allow_mixed   on another build than the one that the run was planned with
        """

    @abstractmethod
    def read_from(self, plan: OnePlan, tasks: Collection[str]) -> Iterable[str]:
        """Places of what these tasks are made from."""

    # --- what was done ---------------------------------------------------------------------

    @abstractmethod
    def held(self, run: Folder[OnePlan], seen: Collection[str] = ()) -> Held[OneTotals]:
        """What a run holds as storage tells it; what this driver has `seen` committed is looked up
        where a listing does not have it yet.
        """

    @abstractmethod
    def add(self, totals: OneTotals, footer: TaskFooter) -> OneTotals:
        """Count one more task."""

    def highlights(self, totals: OneTotals) -> tuple[str, ...]:
        """What live progress says of the rows that are done."""
        return ()

    def write_block(self, run: Folder[OnePlan], tasks: Collection[str]) -> None:
        """Cache what these tasks hold together, for readers of many."""
        return

    @abstractmethod
    def fold(
        self,
        run: Folder[OnePlan],
        held: Held[OneTotals],
        quarantined: Sequence[Quarantined],
        *,
        created: str,
        logical_date: str,
    ) -> OneManifest:
        """The manifest, complete or not."""
