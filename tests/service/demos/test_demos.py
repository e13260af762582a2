"""The demonstrations: models as described, inputs made once, attributions that match the truth, and
pictures.
"""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from integrand.schemas.specs.baselines import ConstantBaseline
from integrand.schemas.uris import Uri
from integrand.service.demos import mnist, models, picture, regression
from integrand.service.demos.demo import DemoFolder, fill_spec, read_spec, reproducible, run_demo
from integrand.service.runs.query import open_run
from integrand.workers.storage.store import Store


def integrate(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, baseline: float = 0, steps: int = 50
) -> np.ndarray:
    """Integrated Gradients by Gauss-Legendre, written out here so that nothing under test
    is used.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(inputs)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (baseline + (inputs - baseline) * float(node)).requires_grad_()
        chosen = model(point).gather(1, targets[:, None]).sum()
        total += float(weight) * torch.autograd.grad(chosen, point)[0]
    return (total * (inputs - baseline)).flatten(1).double().numpy()


@pytest.fixture(scope="module")
def trained_digits() -> tuple[nn.Module, mnist.Digits]:
    train, held = mnist.split_digits(mnist.load_digits())
    return mnist.train_digits(train), held


@pytest.fixture(scope="module")
def explained_digits(trained_digits: tuple[nn.Module, mnist.Digits]) -> pd.DataFrame:
    """43 held-out digits with attributions of their own label against black, as `explain` sees
    them.
    """
    model, held = trained_digits
    some = held.take(np.arange(len(held.labels)) % 7 == 0)
    inputs, labels = mnist.scale(some.pixels), torch.from_numpy(some.labels)
    with torch.no_grad():
        f_input = model(inputs).gather(1, labels[:, None])[:, 0].numpy()
    return pd.DataFrame(
        {
            "label": some.labels,
            "predicted": mnist.predict(model, some.pixels),
            "image": list(some.pixels),
            "status": "ok",
            "error_estimate": 0.01,
            "f_input": f_input,
            mnist.ATTRIBUTION: list(integrate(model, inputs, labels, baseline=-1)),
        }
    )


@pytest.fixture(scope="module")
def grey_digits(
    trained_digits: tuple[nn.Module, mnist.Digits], explained_digits: pd.DataFrame
) -> pd.DataFrame:
    return mnist.attribute_from_grey(trained_digits[0], mnist.choose_rows(explained_digits))


# --- the data and the models -------------------------------------------------------------------


def test_digits_subset_is_small_and_balanced() -> None:
    assert len(files("integrand.service.demos").joinpath("digits.parquet").read_bytes()) < 500_000
    assert np.bincount(mnist.load_digits().labels).tolist() == [250] * 10


def test_split_holds_rows_out() -> None:
    train, held = mnist.split_digits(mnist.load_digits())
    assert not set(train.row_ids) & set(held.row_ids)
    assert np.bincount(held.labels).tolist() == [mnist.HELD_OUT_PER_CLASS] * 10
    assert len(train.labels) + len(held.labels) == 2500


def test_digits_cnn_is_the_notebooks_network() -> None:
    model = models.digits_cnn()
    assert not any(module.training for module in model.modules())
    assert [type(layer).__name__ for layer in model] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Flatten",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Dropout",
        "Linear",
        "LogSoftmax",
    ]
    assert sum(p.numel() for p in model.parameters()) == 260 + 20 + 5020 + 40 + 16050 + 100 + 510
    probabilities = model(torch.rand(3, 1, 28, 28)).exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))


def test_synthetic_mlp_gives_one_output() -> None:
    model = models.synthetic_mlp()
    assert not model.training
    assert model(torch.rand(3, 96)).shape == (3, 1)


def test_broken_rows_are_planted() -> None:
    table = mnist.source_table(mnist.split_digits(mnist.load_digits())[1])
    pixels = dict(zip(table["row_id"].to_pylist(), table["pixels"].to_pylist(), strict=True))
    assert pixels["broken-null"] is None
    assert len(pixels["broken-short"]) == 100
    assert np.isnan(pixels["broken-nan"]).sum() == 1
    assert table.num_rows == 303


# --- training ----------------------------------------------------------------------------------


def test_digits_are_learned(trained_digits: tuple[nn.Module, mnist.Digits]) -> None:
    model, held = trained_digits
    assert not model.training
    assert (mnist.predict(model, held.pixels) == held.labels).mean() >= 0.955


def test_training_repeats_bit_for_bit_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(regression, "STEPS", 10)
    threads = torch.get_num_threads()
    first = regression.train_regressor().state_dict()
    torch.set_num_threads(threads + 1)
    try:
        second = regression.train_regressor().state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_leaves_threads_and_random_state_alone() -> None:
    torch.manual_seed(7)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(7)
    with reproducible(0):
        torch.rand(5)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_synthetic_attributions_are_the_truth() -> None:
    rows = regression.draw_rows(500, seed=99)
    measured = integrate(
        regression.train_regressor(), torch.from_numpy(rows), torch.zeros(500, dtype=torch.int64)
    )
    correlation, leak = regression.agreement(rows * regression.COEFFICIENTS, measured)
    assert correlation >= 0.98
    assert leak <= 0.05


# --- the folder --------------------------------------------------------------------------------


def test_prepare_writes_once_and_then_reuses(
    place: tuple[Store, Uri], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "STEPS", 5)
    folder = DemoFolder(*place)
    spec, facts = regression.prepare(folder)
    written = {e.uri.path: folder.store.read(e.uri) for e in folder.store.list(folder.out)}
    assert sum(path.endswith(".parquet") for path in written) == 4
    assert spec.source.uri == str(folder.out.child("_demo", "synthetic"))
    monkeypatch.setattr(regression, "train_regressor", lambda: pytest.fail("trained again"))
    assert regression.prepare(folder) == (spec, facts)
    assert {e.uri.path: folder.store.read(e.uri) for e in folder.store.list(folder.out)} == written


def test_interrupted_preparation_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "STEPS", 5)
    folder = DemoFolder(Store(), Uri("file", str(tmp_path)))
    regression.prepare(folder)
    (tmp_path / "_demo/facts.json").unlink()
    (tmp_path / "_demo/synthetic/part-2.parquet").write_bytes(b"half")
    regression.prepare(folder)
    assert pq.read_table(tmp_path / "_demo/synthetic").num_rows == regression.ROWS


def test_another_recipe_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "STEPS", 5)
    folder = DemoFolder(Store(), Uri("file", str(tmp_path)))
    regression.prepare(folder)
    assert folder.facts(regression.RECIPE) is not None
    assert folder.facts(regression.RECIPE + 1) is None


def test_whole_demo_runs_and_runs_again(
    place: tuple[Store, Uri], capsys: pytest.CaptureFixture[str]
) -> None:
    store, root = place
    assert run_demo(regression, str(root), access=store.access, pool="local") == 0
    shown = capsys.readouterr().out
    assert str(root.child("_demo", "synthetic.png")) in shown
    assert "within 0.001, as asked" in shown
    assert open_run(root, access=store.access).manifest.statuses == {"ok": regression.ROWS}
    assert run_demo(regression, str(root), access=store.access, pool="local") == 0
    assert "nothing to do" in capsys.readouterr().out


# --- pictures ----------------------------------------------------------------------------------


def test_colours_diverge_from_white_symmetrically() -> None:
    colours = picture.colour_values(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), limit=1).astype(int)
    assert colours[2].tolist() == [255, 255, 255]
    assert colours[0].tolist() == colours[1].tolist()
    assert colours[3].tolist() == colours[4].tolist()
    assert colours[1][2] > colours[1][0]
    assert colours[3][0] > colours[3][2]


def test_colour_limit_ignores_a_few_extremes_and_survives_zeros() -> None:
    values = np.full(1000, -2.0)
    values[:5] = 100
    assert picture.colour_limit(values) == 2
    assert picture.colour_limit(np.zeros(10)) == 1


def test_job_starts_from_a_black_page(tmp_path: Path) -> None:
    folder = DemoFolder(Store(), Uri("file", str(tmp_path)))
    spec = read_spec(fill_spec(mnist.SPEC, folder, source=mnist.NAME, weights=mnist.WEIGHTS))
    assert spec.baseline == ConstantBaseline(value=-1)
    assert (mnist.scale(np.zeros((1, 784), np.uint8)) == -1).all()


def test_black_paper_is_silent_against_black_and_speaks_against_grey(
    explained_digits: pd.DataFrame, grey_digits: pd.DataFrame
) -> None:
    on, area = mnist.ink_shares(explained_digits, reach=0)
    assert on == pytest.approx(1)
    assert area < 0.25
    assert mnist.ink_shares(grey_digits, reach=0)[0] < 0.6
    near, around = mnist.ink_shares(grey_digits, reach=2)
    assert near > 1.3 * around
    noise = list(np.random.Generator(np.random.PCG64(0)).normal(size=(len(explained_digits), 784)))
    assert mnist.ink_shares(explained_digits.assign(**{mnist.ATTRIBUTION: noise}), reach=0)[
        0
    ] == pytest.approx(area, abs=0.02)


def test_neighbouring_pixels_of_a_stroke_agree(explained_digits: pd.DataFrame) -> None:
    ink, maps = (mnist.squares(explained_digits[name]) for name in ("image", mnist.ATTRIBUTION))
    both = (ink[:, :, 1:] > 127) & (ink[:, :, :-1] > 127)
    assert np.corrcoef(maps[:, :, 1:][both], maps[:, :, :-1][both])[0, 1] > 0.55


def test_grey_maps_are_integrated_gradients_from_zero(
    trained_digits: tuple[nn.Module, mnist.Digits], grey_digits: pd.DataFrame
) -> None:
    pixels = np.stack(list(grey_digits["image"]))
    labels = torch.from_numpy(grey_digits["label"].to_numpy().copy())
    truth = integrate(trained_digits[0], mnist.scale(pixels), labels, steps=200)
    found = np.stack(list(grey_digits[mnist.ATTRIBUTION]))
    assert (np.abs(found - truth).sum(axis=1) < 0.03 * np.abs(truth).sum(axis=1)).all()
    assert (grey_digits["status"] == "ok").all()


def test_explanation_reports_both_shares(
    trained_digits: tuple[nn.Module, mnist.Digits], explained_digits: pd.DataFrame, tmp_path: Path
) -> None:
    folder = DemoFolder(Store(), Uri("file", str(tmp_path)))
    folder.write(mnist.WEIGHTS, safetensors.torch.save(trained_digits[0].state_dict()))
    rows = explained_digits.assign(pixels=explained_digits["image"]).drop(
        columns=["image", "predicted"]
    )
    rows.loc[rows.index[0], mnist.ATTRIBUTION] = None
    (black, on_ink), (grey, near_ink) = mnist.explain(rows, folder).findings
    assert "black" in black
    assert on_ink.startswith("100.0%, on ")
    assert "grey" in grey
    assert 50 < float(near_ink.partition("%")[0]) < 100


def test_shown_digits_are_right_and_the_surest_of_their_class(
    explained_digits: pd.DataFrame,
) -> None:
    shown = mnist.choose_rows(explained_digits)
    assert shown["label"].tolist() == sorted(set(explained_digits["label"]))
    assert (shown["predicted"] == shown["label"]).all()
    right = explained_digits[explained_digits["predicted"] == explained_digits["label"]]
    assert shown["f_input"].tolist() == right.groupby("label")["f_input"].max().tolist()


def test_digits_picture_holds_the_images_and_both_maps(
    explained_digits: pd.DataFrame, grey_digits: pd.DataFrame
) -> None:
    shown = mnist.choose_rows(explained_digits)
    drawn = Image.open(io.BytesIO(mnist.draw_digits(shown, grey_digits)))
    assert drawn.format == "PNG"
    assert 1200 <= drawn.width <= 1400
    for column in (0, 7):
        image, black, grey = (tile_pixels(drawn, strip, column) for strip in range(3))
        expected = mnist.squares(shown["image"])[column]
        np.testing.assert_array_equal(image, np.repeat(expected[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(black, map_colours(shown, column))
        np.testing.assert_array_equal(grey, map_colours(grey_digits, column))


def tile_pixels(drawn: Image.Image, strip: int, column: int) -> np.ndarray:
    """The 28 × 28 pixels that were enlarged into one tile."""
    scale, side = picture.SCALE, mnist.SIDE * picture.SCALE
    left = picture.MARGIN + column * (side + picture.GAP)
    down = picture.STRIP_TITLE + side + picture.STRIP_NOTE
    top = picture.MARGIN + picture.HEADER + strip * down + picture.STRIP_TITLE
    return np.asarray(drawn)[top : top + side, left : left + side][
        scale // 2 :: scale, scale // 2 :: scale
    ]


def map_colours(rows: pd.DataFrame, column: int) -> np.ndarray:
    values = mnist.squares(rows[mnist.ATTRIBUTION])[column]
    return picture.colour_values(values, picture.colour_limit(values))


def test_synthetic_picture_puts_the_truth_on_its_line() -> None:
    rows = regression.draw_rows(50).astype(np.float64)
    drawn = Image.open(io.BytesIO(regression.draw_agreement(rows, rows * regression.COEFFICIENTS)))
    off = Image.open(io.BytesIO(regression.draw_agreement(rows, -rows * regression.COEFFICIENTS)))
    assert 1000 <= drawn.width <= 1400
    # top left of the first panel: measured high where the truth is low
    corner = np.s_[140:240, 100:200]
    assert (np.asarray(drawn)[corner].min(axis=2) > 180).all()
    assert (np.asarray(off)[corner].min(axis=2) < 100).any()


@pytest.mark.parametrize(
    "note", ["not_converged, error 1.9%", "ok, error 0.9%", "at_precision_floor, error 12.3%"]
)
def test_a_note_keeps_within_its_picture(note: str) -> None:
    """`not_converged, error 2e-02` ran into the note beside it."""
    draw = ImageDraw.Draw(Image.new("RGB", (400, 60)))
    width = 28 * picture.SCALE
    lines = picture.fitted(draw, note, width).split("\n")
    assert " ".join(lines) == note
    assert len(lines) <= 2
    assert all(
        draw.textlength(line, picture.font(picture.NOTE)) <= width + picture.GAP / 2
        for line in lines
    )
