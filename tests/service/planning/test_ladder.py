"""Smaller step batches: those in which no row has another bit than in a full one."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.records import Numerics, RunManifest
from integrand.service.planning import preflight
from integrand.service.planning.ladder import smaller_batches
from integrand.service.planning.runid import stored_run_id
from integrand.service.planning.trials import step_trial
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.attribution import prepare
from integrand.workers.models.row_tensors import RowTensors
from tests.plugins.jobs import JobFolder
from tests.plugins.texts import TOKENS, footers, text_fields

MOVES = "y = self.logits(x); return y + (y * 1e-6 if len(x) {condition} else 0)"
"""A model whose rows have other last bits in some batches; of which it takes all."""


def smaller(job: JobFolder, **compute: Any) -> tuple[int, ...]:
    return job.plan(compute={"batch_rows": 512} | compute).numerics.smaller_batches


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize(
    ("batch_rows", "expected"),
    [
        ("auto", (512, 256, 128, 64, 32)),
        (512, (256, 128, 64, 32)),
        (100, (64, 32)),
        (64, (32,)),
        (32, ()),
        (1, ()),
        (16384, (8192, 4096, 2048, 1024, 512, 256)),
    ],
)
def test_powers_of_two_below_any_step_batch(
    job: JobFolder, batch_rows: Any, expected: tuple[int, ...]
) -> None:
    assert smaller(job, batch_rows=batch_rows) == expected


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize(
    ("condition", "expected"),
    [("< 128", (256, 128)), ("== 256", ()), ("== 64", (256, 128))],
    ids=["too few", "the next", "one between"],
)
def test_they_end_where_a_row_has_other_bits(
    job: JobFolder, condition: str, expected: tuple[int, ...]
) -> None:
    job.write_model(MOVES.format(condition=condition))
    assert smaller(job) == expected


@pytest.mark.needs_strict_kernels
def test_they_end_where_the_model_raises(job: JobFolder) -> None:
    job.write_model("assert len(x) != 64 or x.shape[1] != 3; return self.logits(x)")
    assert smaller(job) == (256, 128)


def test_where_bits_are_lowered_anyway_all_are_taken(job: JobFolder) -> None:
    job.write_model(
        "y = self.logits(x); y = y + 1e-7 * (torch.arange(len(x))[:, None] % 3);"
        " return y + len(x) * 1e-8"
    )
    plan = job.plan(compute={"batch_rows": 128})
    assert plan.lowered
    assert plan.numerics.smaller_batches == (64, 32)


SHALLOW = (
    "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
    "    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()\n"
)


def test_none_for_a_closed_form(job: JobFolder) -> None:
    job.path.joinpath(f"{job.module}.py").write_text(SHALLOW)
    plan = job.plan(accuracy={"kind": "adaptive"}, compute={"batch_rows": 64})
    assert plan.numerics.exact
    assert plan.numerics.smaller_batches == ()


def test_none_for_a_model_that_takes_one_number_of_rows(job: JobFolder) -> None:
    job.write_model("return self.logits(x.view(64, 3))")
    assert smaller(job, batch_rows=64) == ()


def test_none_for_rows_of_many_lengths(texts: JobFolder) -> None:
    plan = texts.plan(**text_fields(texts, inputs=[TOKENS], compute={"batch_rows": 64}))
    assert plan.numerics.smaller_batches == ()


def test_a_run_is_the_same_whatever_smaller_ones_its_machine_allows(job: JobFolder) -> None:
    plan = job.plan()
    others = plan.numerics.model_copy(update={"smaller_batches": (7, 3)})
    assert stored_run_id(plan.model_copy(update={"numerics": others})) == stored_run_id(plan)


def test_plans_of_before_have_none(job: JobFolder) -> None:
    stored = job.plan().numerics.model_dump(exclude={"smaller_batches"})
    assert Numerics.model_validate(stored).smaller_batches == ()


# --- what is compared ----------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 32), nn.GELU(), nn.Linear(32, 1)).eval()


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("hoisted", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_everything_that_a_row_gets_is_compared(hoisted: bool, gradients: bool) -> None:
    """Outputs; gradients and values on paths; behind a hoisted prefix f and what it makes of
    rows.
    """
    x = torch.randn(8, 96, generator=torch.Generator().manual_seed(1))
    model = net()
    prepared = prepare(model, x) if hoisted else Prepared(model)
    assert (prepared.hoisted is not None) == hoisted
    sample = RowTensors((x,), (torch.zeros(1, 96),))
    trial = step_trial(prepared, sample, 64, gradients=gradients)
    found = trial.everything()
    assert len(found) == 1 + 2 * gradients + 2 * hoisted
    assert all(len(one) == 64 for one in found)
    assert trial.keeps_bits(32, found)
    for place in range(len(found)):
        moved = list(found)
        moved[place] = found[place].clone()
        moved[place].view(-1)[-1] += 1e-3
        assert not trial.keeps_bits(32, moved)


def test_the_last_batch_is_filled_up() -> None:
    sizes = []

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.square().sum(1)

    sample = RowTensors((torch.randn(8, 3),), (torch.zeros(1, 3),))
    trial = step_trial(Prepared(forward), sample, 100)
    expected = trial.everything()
    sizes.clear()
    assert trial.keeps_bits(64, expected)
    assert sizes == [64] * 4


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("target", [{"kind": "index", "index": 0}, {"kind": "top_k", "k": 2}])
def test_runs_have_the_bits_of_full_batches_and_less_padding(
    job: JobFolder, target: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shards, and whether there are smaller batches or not."""
    job.write_rows(count=300)
    job.write_model("return self.logits(3 * x)")
    found: dict[tuple[int, bool], RunManifest] = {}
    padded: dict[tuple[int, bool], int] = {}
    for shard_rows, some in product((300, 41), (True, False)):
        monkeypatch.setattr(
            preflight, "smaller_batches", smaller_batches if some else lambda asked, chosen: ()
        )
        out = f"out/{shard_rows}-{some}"
        found[shard_rows, some] = manifest = job.run(
            accuracy={"kind": "adaptive", "tolerance": 1e-5},
            target=target,
            compute={"batch_rows": 1024, "shard_rows": shard_rows},
            output={"uri": out},
        )
        padded[shard_rows, some] = sum(f.padded_evaluations for f in footers(job, manifest, out))
    assert len({manifest.digest for manifest in found.values()}) == 1
    assert {manifest.determinism for manifest in found.values()} == {"bitwise"}
    assert padded[300, True] < padded[300, False] / 3
    assert padded[41, True] < padded[41, False] / 6
