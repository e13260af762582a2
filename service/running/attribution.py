"""Attribution as a kind of job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import Plan, Quarantined, RunManifest, ShardFooter, TaskFooter
from integrand.schemas.stats import Stats
from integrand.service.operator import Operator
from integrand.service.planning.planner import make_plan
from integrand.service.planning.request import Request
from integrand.service.planning.survey import planned_code
from integrand.service.pools.base import Mapper
from integrand.service.running.kind import JobKind
from integrand.service.runs.footers import Held, RunFolder
from integrand.service.runs.manifest import fold, without_shards
from integrand.service.runs.totals import merge, read_committed, stats_of, write_block
from integrand.workers.data.row_ids import check_row_ids
from integrand.workers.models.code import CodeBundle, check_trust
from integrand.workers.shards.worker import Setup
from integrand.workers.storage.store import Store

RENEWED = ("name", "compute", "limits", "source", "model", "output")
"""Parts of a spec that are no part of a run's identity, or that say where things lie today."""


class Attribution(JobKind[Plan, Stats, RunManifest]):
    """Rows in, attributions with their diagnostics out."""

    plan = Plan
    manifest = RunManifest

    def make_plan(self, request: Request, pool: Mapper) -> tuple[Plan, CodeBundle]:
        return make_plan(request, pool)

    def check_new(self, store: Store, plan: Plan) -> None:
        if plan.spec.source.row_id is not None:
            check_row_ids(store, plan.files, plan.spec.source.row_id)

    def renew(self, stored: Plan, fresh: Plan) -> Plan:
        today = {name: getattr(fresh.spec, name) for name in RENEWED}
        files = tuple(
            known.model_copy(update={"uri": file.uri})
            for known, file in zip(stored.files, fresh.files, strict=True)
        )
        return stored.model_copy(
            update={
                "spec": stored.spec.model_copy(update=today),
                "files": files,
                "artefacts": fresh.artefacts,
                "statistics": fresh.prepasses,
            }
        )

    def stored_code(self, run: RunFolder, trusted: tuple[str, ...]) -> CodeBundle:
        check_trust(run.plan.spec.model, trusted)
        check_build(run.plan, allow_mixed=False)
        return planned_code(run.store, run.plan)

    def make_setup(
        self, run: RunFolder, code: CodeBundle, operator: Operator, *, allow_mixed: bool
    ) -> Setup:
        check_build(run.plan, allow_mixed)
        return Setup(
            plan=without_shards(run.plan),
            plan_sha256=run.plan_sha256,
            run=run.uri,
            access=operator.access,
            trusted=operator.trusted,
            code=code,
            allow_mixed=allow_mixed,
        )

    def read_from(self, plan: Plan, tasks: Collection[str]) -> Iterable[str]:
        places = [artefact.uri for artefact in plan.artefacts]
        for shard in plan.shards:
            if shard.id in tasks:
                places += [plan.files[part.file].uri for part in shard.slices]
        return places

    def held(self, run: RunFolder, seen: Collection[str] = ()) -> Held[Stats]:
        return read_committed(run, seen)

    def add(self, totals: Stats, footer: TaskFooter) -> Stats:
        assert isinstance(footer, ShardFooter)
        return merge([totals, stats_of(footer)])

    def highlights(self, totals: Stats) -> tuple[str, ...]:
        """Evaluations per row, and the share that converged."""
        count = Counter(totals.statuses)
        converged = count["ok"] + count["at_precision_floor"]
        attributed = converged + count["not_converged"] + count["unchecked"]
        if not attributed:
            return ()
        per_row = totals.evaluations / attributed
        return f"{per_row:,.1f} evaluations/row", f"converged {converged / attributed:.1%}"

    def write_block(self, run: RunFolder, tasks: Collection[str]) -> None:
        write_block(run, tasks)

    def fold(
        self,
        run: RunFolder,
        held: Held[Stats],
        quarantined: Sequence[Quarantined],
        *,
        created: str,
        logical_date: str,
    ) -> RunManifest:
        return fold(
            run.plan,
            run.plan_sha256,
            held,
            quarantined,
            created=created,
            logical_date=logical_date,
        )


def check_build(plan: Plan, allow_mixed: bool) -> None:
    """IntegrityError on another torch build than the plan's, unless that may lower the level of
    determinism.
    """
    planned = plan.numerics.torch_build
    if planned != torch.__version__ and not allow_mixed:
        raise IntegrityError(
            "torch build",
            expected=f"{planned}, with which this run began",
            seen=torch.__version__,
            next_step="use that build, or --allow-mixed (level `tolerance`), or --fresh SALT",
        )
