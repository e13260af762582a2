"""What is tried on a few real rows before any worker starts: each model that cannot work is refused
with its cause.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from integrand.schemas.errors import DataError, SpecError
from tests.plugins.jobs import COLUMNS, JobFolder

EXPERTS = """gate = self.first(x)[:, :2].softmax(1)
chosen = nn.functional.one_hot(gate.argmax(1), 2)
place = (chosen.cumsum(0) * chosen).sum(1)
return torch.where(place[:, None] <= 0.8 * len(x), gate * chosen, x[:, :2])"""
"""Each of two experts takes its first rows; the others pass unchanged."""

COUNTER = """self.calls = getattr(self, "calls", 0) + 1
return self.logits(x) * (1 + self.calls // 4)"""
"""The scale grows with every fourth call."""

COMPUTE = {"shard_rows": 10, "batch_rows": 16}


def refusal(job: JobFolder, **changes: Any) -> str:
    with pytest.raises((SpecError, DataError)) as caught:
        job.plan(**changes)
    return str(caught.value)


@pytest.mark.needs_strict_kernels
def test_a_good_model_passes_without_a_warning(job: JobFolder):
    assert job.plan().warnings == ()


@pytest.mark.parametrize(
    ("forward", "mode", "message"),
    [
        ("return torch.dropout(self.logits(x), 0.5, True)", ".eval()", "two runs that differ"),
        ("return self.logits(x) + torch.randn(1)", ".eval()", "two runs that differ"),
        ("return self.logits(x + 0.1 * torch.randn_like(x))", ".eval()", "two runs that differ"),
        ("return self.logits(x).softmax(0)", ".eval()", "with its neighbours"),
        ("return self.logits((x - x.mean(0)) / (x.std(0) + 1))", ".eval()", "with its neighbours"),
        (
            "return self.logits(nn.functional.batch_norm(x, None, None, training=True))",
            ".eval()",
            "with its neighbours",
        ),
        ("return self.logits(x + x.sort(0).values)", ".eval()", "with its neighbours"),
        ("return self.logits(x) / self.logits(x).abs().max()", ".eval()", "with its neighbours"),
        (EXPERTS, ".eval()", "with its neighbours"),
        (
            "return self.logits(nn.BatchNorm1d(3, track_running_stats=False).eval()(x))",
            ".eval()",
            "with its neighbours",
        ),
        (
            "return nn.functional.dropout(self.logits(x), 0.5, training=True)",
            ".eval()",
            "two runs that differ",
        ),
        (
            "return self.logits(x) + (torch.rand(()) < 1e-6) * x[:, :2]",
            ".eval()",
            "random numbers drawn in forward",
        ),
        (COUNTER, ".eval()", "two runs that differ"),
        ("return self.logits(torch.ones_like(x))", ".eval()", "depend"),
        ("return self.logits(x.detach())", ".eval()", "depend"),
        ("return self.logits(x).detach()", ".eval()", "depend"),
        ("return self.logits(x).argmax(1)", ".eval()", "argmax or rounding"),
        ("return self.logits(x).sum()", ".eval()", "one entry per row"),
        ("return self.logits(x)[:1]", ".eval()", "one entry per row"),
        ("return {'logits': self.logits(x)}", ".eval()", "seen: dict"),
        ("return self.logits(x)[:, :, None]", ".eval()", "2 indices per row"),
        ("return self.first(x[:, :2])", ".eval()", "a forward pass over real rows"),
        ("raise RuntimeError('no such layer')", ".eval()", "no such layer"),
    ],
)
def test_a_model_that_cannot_be_attributed_is_refused(
    job: JobFolder, forward: str, mode: str, message: str
):
    job.write_model(forward, mode)
    assert message in refusal(job)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return self.logits(x).round()", "every gradient is zero"),
        ("return (self.logits(x) > 0).float() + 0 * x[:, :2]", "every gradient is zero"),
        ("return self.logits(x) / 0", "NaN or inf"),
    ],
)
def test_a_doubtful_model_is_warned_about(job: JobFolder, forward: str, message: str):
    job.write_model(forward)
    warnings = job.plan().warnings
    assert any(message in w for w in warnings), warnings


BY_PLACE = "return self.logits(x) + 1e-7 * (torch.arange(len(x)) % 2)[:, None]"
"""A last bit that goes with a row's place in the batch, as matrix kernels at odd sizes leave it."""
BY_MANY = "return self.logits(x) + 1e-7 * (len(x) > 128) * (torch.arange(len(x)) % 2)[:, None]"
"""The same, in batches of more than 128 rows alone."""
LARGE = "return self.logits(x) + 1e-7 * (len(x) > 512) * (torch.arange(len(x)) % 2)[:, None]"


@pytest.mark.parametrize("compute", [{}, {"batch_rows": 32}], ids=["auto", "asked for"])
def test_bits_that_are_preferred_cost_no_cliff(job: JobFolder, compute: dict[str, Any]):
    """The full step batch, at level tolerance, and the reason in plan, manifest and status."""
    job.write_model(BY_PLACE)
    plan, manifest = job.plan(compute=compute), job.run(compute=compute)
    size = compute.get("batch_rows", 1024)
    assert plan.numerics.batch_rows == manifest.numerics.batch_rows == size
    assert manifest.determinism == "tolerance"
    assert manifest.determinism_reasons == (plan.lowered,)
    assert f"place in a step batch of {size:,} rows" in str(plan.lowered)
    (warning,) = plan.warnings
    assert "`compute.reproducible: require`" in warning or "MKL_CBWR" in warning


@pytest.mark.parametrize(
    ("forward", "size", "level"),
    [
        (LARGE, 512, "bitwise"),
        (BY_MANY, 1024, "tolerance"),
    ],
    ids=["somewhat smaller", "much smaller"],
)
def test_preferred_bits_are_worth_a_somewhat_smaller_step_batch(
    job: JobFolder, forward: str, size: int, level: str
):
    job.write_model(forward)
    manifest = job.run(compute={})
    assert (manifest.numerics.batch_rows, manifest.determinism) == (size, level)


@pytest.mark.parametrize(
    ("forward", "size"), [(BY_PLACE, 1), (BY_MANY, 128), ("return self.logits(x)", 1024)]
)
@pytest.mark.parametrize("level", ["require", "portable"])
def test_required_bits_take_the_largest_step_batch_that_keeps_them(
    job: JobFolder, forward: str, size: int, level: str, monkeypatch: pytest.MonkeyPatch
):
    """And say what it costs. Portable kernels are another matter: see test_kernels."""
    monkeypatch.setattr("integrand.service.planning.planner.settle_kernels", lambda spec: None)
    job.write_model(forward)
    plan = job.plan(compute={"reproducible": level})
    assert (plan.numerics.batch_rows, plan.lowered) == (size, None)
    told = [w for w in plan.warnings if w.startswith(f"batch_rows is {size}, not 1,024")]
    assert len(told) == (size < 1024)
    assert all("times as long" in w for w in told)


def test_a_step_batch_that_breaks_required_bits_is_refused(job: JobFolder):
    job.write_model(BY_PLACE)
    message = refusal(job, compute={"batch_rows": 16, "reproducible": "require"})
    assert "batch_rows is 16" in message
    assert "`batch_rows: auto`" in message
    assert "`reproducible: prefer`" in message


IN_VAIN = """out = self.logits(x)
torch.zeros(4).put_(torch.tensor([1]), out[0, :1].detach())
self.calls = getattr(self, "calls", 0) + 1
return out"""
"""An operation of which torch has no deterministic form."""


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
@pytest.mark.parametrize(
    "noise", ["", " + 1e-7 * (self.calls % 2)"], ids=["the same in the trial", "rounded otherwise"]
)
def test_an_operation_without_a_deterministic_form_is_told(job: JobFolder, noise: str):
    """In the plan and in the run, also where a few runs happen to agree; it is the user's to say
    whether that is enough.
    """
    job.write_model(IN_VAIN + noise)
    plan, manifest = job.plan(compute={}), job.run(compute={})
    assert (manifest.determinism, manifest.determinism_reasons) == ("tolerance", (plan.lowered,))
    assert "no deterministic form of put_ on cpu" in str(plan.lowered)
    assert plan.lowered in plan.warnings
    message = refusal(job, compute={"reproducible": "require"})
    for words in ("compute.reproducible: require", "put_", "take `prefer`"):
        assert words in message


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_random_numbers_are_refused_whatever_operations_are_used(job: JobFolder):
    job.write_model(f"{IN_VAIN} + torch.rand(())")
    assert "the same result for the same batch" in refusal(job)


SHALLOW = (
    "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    return"
    " nn.Linear(3, 2).eval()\n"
)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("keeps", [True, False])
def test_a_closed_form_is_held_to_its_own_bits(
    job: JobFolder, keeps: bool, monkeypatch: pytest.MonkeyPatch
):
    """It takes no step batches: what matters is a row's place among those it takes at once."""
    (job.path / f"{job.module}.py").write_text(SHALLOW)
    if not keeps:
        for place in ("batches", "preflight"):
            monkeypatch.setattr(
                f"integrand.service.planning.{place}.keeps_order", lambda prepared, sample: False
            )
    plan = job.plan(accuracy={"kind": "exact"}, compute={})
    assert (plan.numerics.exact, plan.lowered is None, plan.warnings == ()) == (True, keeps, keeps)
    if not keeps:
        step = job.plan(compute={"reproducible": "require"}, accuracy={"kind": "adaptive"})
        assert (step.numerics.exact, step.lowered) == (
            False,
            None,
        ), "step batches keep what the closed form does not"
        assert "that the closed form takes at once" in refusal(
            job, accuracy={"kind": "exact"}, compute={"reproducible": "require"}
        )


IDS = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.last(self.words(ids).tanh().sum(1) + torch.zeros(8, 4))

def build():
    return Words().eval()
"""
FIXED = """hidden = torch.zeros(1, {rows}, 8, dtype=x.dtype)
if len(x) not in {taken}:
    raise RuntimeError(f"Expected hidden[0] size (1, {{len(x)}}, 8), got [1, {rows}, 8]")
return self.logits(x)"""


@pytest.mark.parametrize(
    ("taken", "size", "portion"),
    [
        ((8,), 8, 8),
        ((5,), 5, 5),
        ((100,), 100, 100),
        (range(2, 17), 16, None),
        (range(1, 5), 4, 4),
    ],
    ids=["8", "5", "100", "2 to 16", "up to 4"],
)
def test_a_model_that_takes_some_numbers_of_rows_gets_those(
    job: JobFolder, taken: Any, size: int, portion: int | None
):
    job.write_model("return self.logits(x)")
    expected = job.rows(job.run(compute={}))["attr.a"].to_numpy()
    job.write_model(FIXED.format(rows=8, taken=taken))
    manifest = job.run(compute={})
    assert (manifest.numerics.batch_rows, manifest.numerics.takes_rows) == (size, portion)
    np.testing.assert_allclose(job.rows(manifest)["attr.a"], expected, rtol=1e-5, atol=1e-7)


def test_a_number_of_rows_that_nobody_guesses_is_asked_for(job: JobFolder):
    job.write_model(FIXED.format(rows=77, taken=(77,)))
    message = refusal(job, compute={})
    assert "other batches of 1 to 1,024 rows" in message
    assert "compute.batch_rows" in message
    assert "no ids" not in message  # it has none
    assert job.run(compute={"batch_rows": 77}).numerics.batch_rows == 77


def test_what_a_refusal_says_of_other_batches_is_so(job: JobFolder):
    """It said of every model that raised that it raised for 1 to 1,024 rows."""
    job.write_model("return self.logits(x) if bool((x == x[:1]).all()) else self.unlike_rows")
    message = refusal(job, compute={})
    assert "unlike_rows" in message
    assert "while it runs on 16 copies of the first" in message


def test_a_model_of_ids_that_takes_one_number_of_rows_is_refused_and_no_traceback(job: JobFolder):
    job.write_rows(tokens=[[1, 2, 3]] * 20)
    (job.path / f"{job.module}.py").write_text(IDS)
    inputs = [{"name": "tokens", "ids": "tokens", "embedding": "words"}]
    assert "compute.batch_rows, and no ids" in refusal(job, inputs=inputs, compute={})


def test_a_step_batch_that_the_model_does_not_take_is_refused(job: JobFolder):
    job.write_model(FIXED.format(rows=8, taken=range(1, 40)))
    message = refusal(job, compute={"batch_rows": 64})
    assert "RuntimeError for batches of 64 rows" in message
    assert "compute.batch_rows" in message


@pytest.mark.needs_strict_kernels
def test_a_model_in_train_mode_is_put_into_eval_mode_once(job: JobFolder):
    job.write_model("return self.logits(x)", "")
    assert [w for w in job.plan().warnings if "train mode" in w] == list(job.plan().warnings)
    assert job.run().complete


def test_an_unused_input_is_named_and_gets_zeros(job: JobFolder):
    job.write_model("return self.logits(x)")
    inputs = [{"name": "features", "columns": list(COLUMNS)}, {"name": "spare", "columns": ["id"]}]
    assert any("spare" in w and "zeros" in w for w in job.plan(inputs=inputs).warnings)
    assert (job.rows(job.run(inputs=inputs))["attr.id"] == 0).all()


@pytest.mark.needs_strict_kernels
def test_an_input_that_some_row_uses_is_not_called_unused(job: JobFolder):
    """A gradient of zero at a saturated point is no proof that the input is unused."""
    job.write_model("return self.logits(x) + more[0].clamp(max=-1) + 1")
    inputs = [{"name": "features", "columns": list(COLUMNS)}, {"name": "spare", "columns": ["id"]}]
    assert job.plan(inputs=inputs).warnings == ()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"kind": "index", "index": 2}, "expected: from 0 to 1"),
        ({"kind": "index", "index": [0, 1]}, "1 indices per row"),
        ({"kind": "scalar"}, "name a target from 0 to 1"),
        ({"kind": "column", "column": "far"}, "output indices from 0 to 1"),
        ({"kind": "column", "column": "none"}, "column `none`"),
    ],
)
def test_a_target_out_of_range_is_refused(job: JobFolder, target: dict[str, Any], message: str):
    job.write_rows(far=[2] * 20)
    assert message in refusal(job, target=target)


@pytest.mark.parametrize("kind", ["argmax", "all"])
def test_a_target_of_several_outputs_needs_a_row_of_them(job: JobFolder, kind: str):
    job.write_model("return self.logits(x)[:, :, None]")
    assert "model outputs [rows, outputs]" in refusal(job, target={"kind": kind})


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"kind": "constant", "value": [1, 2]}, "baseline of input `features`"),
        ({"kind": "column", "columns": ["a", "b"]}, "expected: 3 columns"),
        ({"kind": "column", "column": "a"}, "`columns`, one per feature"),
        ({"kind": "column", "columns": ["a", "b", "zz"]}, "column `zz`"),
    ],
)
def test_a_baseline_of_the_wrong_length_is_refused(
    job: JobFolder, baseline: dict[str, Any], message: str
):
    assert message in refusal(job, baseline=baseline)


def test_a_missing_or_corrupt_model_file_is_refused(job: JobFolder):
    assert "nothing there" in refusal(job, model=job.weighted("none.safetensors"))
    (job.path / "weights.safetensors").write_bytes(b"not safetensors")
    assert "weights-only state dict" in refusal(job, model=job.weighted())
    (job.path / "weights.pt").write_bytes(b"\x80\x04junk")
    assert "weights-only state dict" in refusal(job, model=job.weighted("weights.pt"))
    job.write_weights()
    assert "the parameters of Model" in refusal(
        job, model=job.weighted() | {"arguments": {"outputs": 3}}
    )


@pytest.mark.parametrize("marks", [(0,), (0, 1, 2, 5), range(15)])
def test_a_model_that_raises_on_some_of_the_first_rows_is_tried_on_others(
    job: JobFolder, marks: Sequence[int]
):
    """They are `failed` in the output, as any other rows would be."""
    job.write_model(
        "if (x[:, 0] >= 1000).any(): raise ValueError('not this row')\nreturn self.logits(x)"
    )
    job.write_rows(marks=tuple(marks))
    manifest = job.run()
    assert manifest.statuses == {"failed": len(marks), "unchecked": 20 - len(marks)}


def test_a_model_that_crashes_while_it_is_tried_says_where(job: JobFolder):
    job.write_model("ctypes.string_at(0)")
    command = [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "plan",
        str(job.write_spec()),
        "--trust-model-code",
        job.module,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == -signal.SIGSEGV
    assert f"{job.module}.py" in done.stderr


@pytest.mark.parametrize(
    ("kind", "trusted"), [("torchscript", "torchscript"), ("torch_export", "torch_export")]
)
def test_a_corrupt_program_is_refused(job: JobFolder, kind: str, trusted: str):
    (job.path / "program").write_bytes(b"not a program")
    job.module = trusted
    assert "a program that this torch can load" in refusal(
        job, model={"kind": kind, "uri": "program"}
    )
    assert "nothing there" in refusal(job, model={"kind": kind, "uri": "none"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entrypoint": "no_such_module_here:build", "code": ()}, "no such module"),
        ({"entrypoint": "no_such_module_here:build"}, "modules below a trusted prefix"),
        ({"entrypoint": "{module}:none"}, "no callable `none`"),
        ({"entrypoint": "{module}:FAULTS"}, "no callable `FAULTS`"),
        ({"entrypoint": "{module}:fail", "arguments": {"error": 1}}, "exceptions must derive"),
        ({"entrypoint": "{module}:leave"}, "SystemExit: 0"),
        ({"entrypoint": "{module}:nothing"}, "a torch.nn.Module"),
        ({"entrypoint": "{module}:Path"}, "one of pathlib"),
        ({"arguments": {"no_such": 1}}, "no_such"),
        ({"code": ["none.py"]}, "none.py"),
    ],
)
def test_a_factory_that_builds_no_model_is_refused(
    job: JobFolder, change: dict[str, Any], message: str
):
    entrypoint = change.get("entrypoint", "{module}:build").format(module=job.module)
    model = job.model() | change | {"entrypoint": entrypoint}
    job.module = entrypoint.split(":")[0]
    assert message in refusal(job, model=model)


def test_too_little_memory_is_refused_with_what_a_row_needs(job: JobFolder):
    job.write_model("return self.logits(x) + 0 * x.repeat(1, 1000000).square()[:, :2]")
    assert "compute.memory" in refusal(job, compute={"memory": 1 << 20})


def test_where_memory_runs_out_fewer_rows_are_tried(job: JobFolder):
    """Down to those that fit; of a number that is asked for it is told."""
    job.write_model("return fail(MemoryError('no room')) if len(x) > 128 else self.logits(x)")
    assert job.plan(compute={}).numerics.batch_rows == 128
    message = refusal(job, compute={"batch_rows": 256})
    assert "room for the model" in message
    assert "a smaller compute.batch_rows" in message


def test_where_not_even_a_few_rows_fit_that_is_told(job: JobFolder):
    job.write_model("raise MemoryError('no room')")
    message = refusal(job)
    assert "memory" in message
    assert "no room" in message


def test_memory_bounds_the_step_batch(job: JobFolder):
    job.write_model("return self.logits(x) + 0 * x.repeat(1, 10000).square()[:, :2]")
    small, large = (job.plan(compute={"memory": m}).numerics.batch_rows for m in (1 << 20, 1 << 28))
    assert small < large


def test_first_rows_without_a_usable_one_are_refused_with_the_reason(job: JobFolder):
    job.write_rows(a=pa.array([None] * 20, pa.float32()))
    assert "a is null" in refusal(job)


@pytest.mark.needs_strict_kernels
def test_bad_first_rows_are_skipped(job: JobFolder):
    job.write_rows(a=[float("nan")] * 10 + [1.0] * 10)
    assert job.plan().warnings == ()


def test_the_process_is_left_as_it_was(job: JobFolder):
    threads = torch.get_num_threads()
    job.plan(compute={"threads": threads + 1})
    assert torch.get_num_threads() == threads
    job.write_model("raise RuntimeError()")
    refusal(job, compute={"threads": threads + 1})
    assert torch.get_num_threads() == threads


def test_a_baseline_at_which_the_model_says_much_is_warned_of(job: JobFolder):
    job.write_model("return self.logits(x) + 100 * (1 - x.abs().sum(1, keepdim=True)).clamp(min=0)")
    (warning,) = [w for w in job.plan().warnings if w.startswith("f at the baseline")]
    assert "attributions add up to their difference" in warning


def test_log_probabilities_are_near_0_nowhere_but_at_certainty(job: JobFolder):
    """So that a baseline far from 0 beside sure rows is nothing to warn of."""
    sure = "hot = 50 * x.abs().sum(1, keepdim=True) * torch.tensor([-1.0, 1.0])"
    job.write_model(f"{sure}\nreturn hot.log_softmax(1)")
    assert not [w for w in job.plan().warnings if w.startswith("f at the baseline")]
    job.write_model(f"{sure}\nreturn 1 / (1 + hot.abs())")
    assert [w for w in job.plan().warnings if w.startswith("f at the baseline")]


def test_a_baseline_that_is_not_counted_yet_is_not_judged(job: JobFolder):
    job.write_model("return self.logits(x) + 100 * (1 - x.abs().sum(1, keepdim=True)).clamp(min=0)")
    warnings = job.plan(baseline={"kind": "mean"}).warnings
    assert not [w for w in warnings if w.startswith("f at the baseline")]
