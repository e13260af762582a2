"""Pictures of runs and rows: what is drawn is checked on the numbers handed to the plot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.service.reports.pictures.bars import bars_of, draw_bars
from integrand.service.reports.pictures.choice import picture_of_row, picture_of_run
from integrand.service.reports.pictures.heat import draw_heat, heat_of
from integrand.service.reports.pictures.style import figure, save
from integrand.service.reports.pictures.swarm import DOTS, draw_swarm, swarm_of
from integrand.service.reports.pictures.waterfall import draw_waterfall, waterfall_of
from integrand.service.runs.query import open_run
from tests.plugins.jobs import JobFolder
from tests.plugins.pictures import encoded, noise

pytest.importorskip("matplotlib")
FEATURES = [f"f{i}" for i in range(14)]


def record(status: str = "ok", error: float = 0.01) -> pd.Series:
    return pd.Series(
        {
            "row_id": 7,
            "target": 1,
            "status": status,
            "f_baseline": -1.0,
            "f_input": 2.0,
            "error_estimate": error,
        }
    )


def record_named(name: str) -> pd.Series:
    named = record()
    named["row_id"] = name
    return named


def largest() -> pd.DataFrame:
    values = [*np.linspace(2, -1, 13), 0.0]
    found = pd.DataFrame({"feature": FEATURES, "attribution": values})
    return found.sort_values("attribution", key=abs, ascending=False, kind="stable")


def swarm_frame(rows: int, features: int) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    columns: dict[str, object] = {"status": ["ok", "not_converged"] * (rows // 2)}
    for i in range(features):
        columns[f"f{i}"] = generator.normal(size=rows)
        columns[f"attr.f{i}"] = (i + 1) * generator.normal(size=rows)
    return pd.DataFrame(columns)


def test_a_waterfall_goes_from_f_at_the_baseline_to_f_at_the_row() -> None:
    shown = waterfall_of(record(), largest(), "zero baseline")
    assert len(shown.steps) == 10
    assert shown.steps[0].label == "5 other features"
    assert shown.steps[0].is_rest
    assert shown.steps[0].start == -1.0
    for one, following in zip(shown.steps, shown.steps[1:], strict=False):
        assert following.start == pytest.approx(one.start + one.size)
    sizes = [abs(step.size) for step in shown.steps[1:]]
    assert sizes == sorted(sizes)
    end = shown.steps[-1].start + shown.steps[-1].size
    assert end == pytest.approx(-1 + largest()["attribution"].sum())
    assert shown.uncertain == pytest.approx(0.01 * largest()["attribution"].abs().sum())


def test_few_features_have_a_bar_each_and_uncertified_ones_are_hollow() -> None:
    shown = waterfall_of(record("not_converged"), largest().head(3), "zero baseline")
    assert [step.is_rest for step in shown.steps] == [False] * 3
    (plot,) = draw_waterfall(shown).axes
    assert all(bar.get_facecolor()[3] == 0 for bar in plot.patches)
    (plot,) = draw_waterfall(waterfall_of(record(), largest().head(3), "zero baseline")).axes
    assert all(bar.get_facecolor()[3] == 1 for bar in plot.patches)


def test_a_rule_without_an_estimate_has_no_whiskers() -> None:
    shown = waterfall_of(record("unchecked", np.nan), largest().head(3), "zero baseline")
    (plot,) = draw_waterfall(shown).axes
    assert not plot.containers[1:] or len(plot.containers) == 3


def test_a_swarm_has_the_largest_features_first_and_the_rest_in_one_grey_line() -> None:
    shown = swarm_of(swarm_frame(40, 14), "t")
    assert len(shown.lines) == 10
    means = [line.mean_abs for line in shown.lines[:-1]]
    assert means == sorted(means, reverse=True)
    assert shown.lines[-1].label == "5 other features"
    assert np.isnan(shown.lines[-1].ranks).all()
    first = shown.lines[0]
    assert (first.ranks.min(), first.ranks.max()) == (0, 1)
    assert shown.certified.tolist() == [True, False] * 20


def test_a_swarm_of_many_rows_draws_some_and_counts_all() -> None:
    frame = swarm_frame(2 * DOTS, 3)
    shown = swarm_of(frame, "t")
    assert (len(shown.certified), shown.rows) == (DOTS, 2 * DOTS)
    again = swarm_of(frame, "t")
    assert np.array_equal(shown.lines[0].attributions, again.lines[0].attributions)
    assert shown.lines[0].mean_abs == pytest.approx(frame["attr.f2"].abs().mean())
    assert draw_swarm(shown).axes[0].get_xlabel() == "attribution, in units of f"


def test_heat_maps_are_symmetric_around_zero_and_capped() -> None:
    values = np.arange(-50.0, 50.0).reshape(1, 10, 10)
    values[0, 0, 0] = -1e6
    shown = heat_of(record(), np.concatenate([values, values]), None, "zero baseline")
    assert shown.limit < 1e5
    assert np.array_equal(shown.signed, 2 * values[0])
    magnitude, signed = draw_heat(shown).axes[:2]
    assert magnitude.images[0].get_clim() == (0, shown.limit)
    assert signed.images[0].get_clim() == (-shown.limit, shown.limit)


def test_pictures_stand_in_colour_beside_their_maps() -> None:
    pixels = np.linspace(-1, 1, 300).reshape(3, 10, 10)
    shown = heat_of(record(), pixels, pixels, "blur baseline")
    assert shown.picture is not None
    assert shown.picture.shape == (10, 10, 3)
    assert (shown.picture.min(), shown.picture.max()) == (0, 1)
    assert [plot.get_title() for plot in draw_heat(shown).axes[:3]] == [
        "input",
        "|Σ channels|",
        "signed",
    ]


def test_runs_and_rows_are_drawn(job: JobFolder, tmp_path: Path) -> None:
    job.write_rows(a=[float("nan")] + [1.0] * 19)
    manifest = job.run()
    run = open_run(str(job.path / "out" / manifest.run_id))
    for name, made in (("run.png", picture_of_run(run)), ("row.svg", picture_of_row(run, "3"))):
        save(made, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(DataError, match="bad_input"):
        picture_of_row(run, "0")
    with pytest.raises(DataError, match="none such"):
        picture_of_row(run, "999")


def test_bars_are_means_of_sizes_with_the_rest_in_a_last_one(job: JobFolder) -> None:
    job.write_rows()
    run = open_run(job.run_uri(job.run(accuracy={"kind": "adaptive", "tolerance": 1e-3})))
    top = run.top_features()
    whole = bars_of(run, "t")
    assert whole.labels == tuple(top["feature"])
    np.testing.assert_allclose(whole.means, top["mean_abs"])
    assert not whole.has_rest
    shown = bars_of(run, "t", most=2)
    assert shown.labels == (top["feature"][0], "2 other features")
    np.testing.assert_allclose(shown.means, [top["mean_abs"][0], top["mean_abs"][1:].sum()])
    rows = run.to_pandas()
    sizes = rows[[f"attr.{name}" for name in "abc"]].abs().sum(axis=1)
    assert shown.uncertain == pytest.approx((sizes * rows["error_estimate"]).mean())
    (plot,) = draw_bars(shown).axes
    colours = {bar.get_facecolor() for bar in plot.patches}
    assert len(colours) == 2
    assert plot.get_xlim()[0] == 0


def test_dots_of_uncertified_rows_are_hollow_and_of_certified_ones_full() -> None:
    frame = swarm_frame(40, 3)
    frame["status"] = ["at_precision_floor", "not_converged"] * 20
    plot = draw_swarm(swarm_of(frame, "t")).axes[0]
    full, hollow = plot.collections[:2]
    assert full.get_array() is not None
    assert len(hollow.get_facecolor()) == 0
    assert len(hollow.get_edgecolor()) == 20


def test_encoded_pictures_are_shown_as_the_model_gets_them(job: JobFolder) -> None:
    pixels = noise(4, 3)
    job.write_table("rows.parquet", pa.table({"id": [0], "png": [encoded(pixels)]}))
    job.write_model("return x.flatten(1).sin()")
    inputs = [{"name": "image", "image": "png", "size": [4, 3]}]
    run = open_run(job.run_uri(job.run(inputs=inputs)))
    shown = picture_of_row(run, "0").axes[0].images[0].get_array()
    low, high = int(pixels.min()), int(pixels.max())
    np.testing.assert_allclose(np.asarray(shown), (pixels.astype(float) - low) / (high - low))


def test_pictures_of_stored_runs_load_no_torch_and_open_no_window(job: JobFolder) -> None:
    job.write_rows()
    code = f"""
import sys
from integrand.service.reports.pictures.bars import bars_of, draw_bars
from integrand.service.reports.pictures.choice import picture_of_row, picture_of_run
from integrand.service.runs.query import open_run
run = open_run({str(job.run_uri(job.run()))!r})
picture_of_run(run), picture_of_row(run, "3")
print([m for m in ("torch", "ray", "matplotlib.pyplot") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_names_are_text_and_never_formulas(tmp_path: Path) -> None:
    hostile = "a$\\frac{$\u202e"
    found = pd.DataFrame({"feature": [hostile, "b"], "attribution": [2.0, 1.0]})
    made = draw_waterfall(waterfall_of(record_named(hostile), found, "zero"))
    save(made, tmp_path / "row.svg")
    frame = swarm_frame(4, 1).rename(columns={"attr.f0": f"attr.{hostile}"})
    save(draw_swarm(swarm_of(frame, hostile)), tmp_path / "run.png")
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert labels[1] == "a\\$\\frac{\\$\\u202e"


def test_without_matplotlib_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SpecError, match=r"integrand\[report\]"):
        figure(1, 1)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\.png, \.svg, \.pdf"):
        save(figure(1, 1), tmp_path / "picture.bmp")


def test_of_a_long_run_some_shards_are_read(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = job.run(compute={"shard_rows": 2, "batch_rows": 16})
    run = open_run(str(job.path / "out" / manifest.run_id))
    assert len(run.some(20)) == 20
    some = run.some(5)
    assert len(some) == 6
    assert some["row_id"].diff().dropna().abs().max() > 1
    monkeypatch.setattr("integrand.service.reports.pictures.choice.MOST_ROWS", 5)
    (plot, *_) = picture_of_run(run).axes
    assert len(plot.get_yticks()) == 3
