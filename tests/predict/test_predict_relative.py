"""Columns relative to the patient, from training to a prediction; features that refuse them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, predictions_of, quick_train, tabular

from skinmm.cli import main
from skinmm.config.remote_commands import ServeConfig
from skinmm.data.relative import compare_rows
from skinmm.errors import InputError
from skinmm.predict import Predictor
from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.ensemble import load_models
from skinmm.predict.predictor import select_device

RELATIVE = ["area difference within patient", "area z-score within patient"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the area tells the classes apart only within a patient."""
    folder = tmp_path_factory.mktemp("relative")
    rng = np.random.default_rng(0)
    patient, target = rng.integers(0, 90, 400), rng.random(400) < 0.4
    area = 20 * rng.normal(size=90)[patient] + 3 * target + rng.normal(size=400)
    table = pd.DataFrame(
        {
            "image_id": [f"I{n}" for n in range(400)],
            "patient_id": [f"P{n}" for n in patient],
            "target": target.astype(int),
            "age": rng.integers(20, 80, 400),
            "area": [f"{number:.3f} mm2" for number in area],
        }
    )
    table.loc[::10, "patient_id"] = None
    table.loc[5::20, "area"] = "unknown"
    table.to_csv(folder / "cohort.csv", index=False)
    settings = ("data.columns=[age,area]", "data.relative=[area]", "head=linear")
    assert quick_train(folder / "run", *tabular(folder), *settings) == 0
    return folder / "run"


def read_table(run: Path) -> pd.DataFrame:
    return pd.read_csv(run.parent / "cohort.csv", dtype=object).drop(columns="target")


def test_a_job_gives_the_predictions_of_training(run: Path, tmp_path: Path) -> None:
    table, output = read_table(run).sample(frac=1, random_state=1), tmp_path / "out.csv"
    table.to_csv(tmp_path / "table.csv", index=False)
    job = [f"checkpoint={best(run)}", f"input={tmp_path / 'table.csv'}", "batch_size=4"]
    assert main.predict([*job, f"output={output}", f"explain={tmp_path / 'explained'}"]) == 0
    rows, expected = pd.read_csv(output), predictions_of(run).set_index("image_id")
    assert rows["image_id"].tolist() == table["image_id"].tolist()
    actual = rows.set_index("image_id").loc[expected.index, "p_malignant"]
    np.testing.assert_allclose(actual, expected["p_malignant"], atol=1e-6)
    whole = Predictor.from_checkpoints(run).predict(table)
    np.testing.assert_allclose(rows["malignancy"], whole["malignancy"], atol=1e-6)
    explained = pd.read_csv(tmp_path / "explained" / "explanations.csv")
    np.testing.assert_allclose(explained["explained"], rows["malignancy"], atol=1e-5)
    assert explained[f"added_{RELATIVE[0]}"].abs().mean() > 0.01
    is_missing = rows["missing"].fillna("").str.contains(RELATIVE[0])
    numbers = pd.to_numeric(table["area"].str.removesuffix(" mm2"), errors="coerce")
    patients = table["patient_id"].where(table["patient_id"].notna(), None).tolist()
    wanted = compare_rows(patients, numbers.to_numpy()[:, None])
    assert is_missing.tolist() == np.isnan(wanted[:, 0]).tolist()
    assert 0 < is_missing.sum() < 150


def test_rows_of_other_patients_do_not_count(run: Path) -> None:
    predictor, table = Predictor.from_checkpoints(run), read_table(run)
    whole = predictor.predict(table).set_index("image_id")
    few = table[table["patient_id"].isin(table["patient_id"].dropna().unique()[:5])]
    part = predictor.predict(few).set_index("image_id")
    np.testing.assert_allclose(part["malignancy"], whole.loc[part.index, "malignancy"], atol=1e-9)
    twice = predictor.predict(pd.concat([few, few]))
    np.testing.assert_allclose(twice["malignancy"], [*part["malignancy"]] * 2, atol=1e-9)
    single = predictor.predict(few.iloc[:1])
    assert single["missing"].tolist() == ["|".join(RELATIVE)]
    # A column with the name of a computed one is not read.
    again = predictor.predict(few.assign(**dict.fromkeys(RELATIVE, 9.0)))
    assert again["malignancy"].tolist() == part["malignancy"].tolist()


def test_a_service_compares_the_rows_of_a_batch(run: Path) -> None:
    service = CasePredictor(ServeConfig(accelerator="cpu"), [best(run)])
    table = read_table(run).head(100)
    rows: list[Any] = table.drop(columns="image_id").astype(str).fillna("").to_dict("records")
    answers = service.predict_table(rows, {})
    expected = Predictor.from_checkpoints(run).predict(table)
    assert [row["malignancy"] for row in answers] == pytest.approx(expected["malignancy"].tolist())
    row, explanation = service.predict_and_explain(Case([], rows[1]))
    assert row["missing"] == RELATIVE
    assert explanation is not None
    assert {*explanation.contributions.added} == {"age", "area"}
    assert service.card["columns"] == ["age", "area"]
    assert service.card["relative"] == RELATIVE
    assert RELATIVE[0] in (run / "card.md").read_text(encoding="utf-8")
    service.predictor.ensemble.column_names["Fall"] = "patient_id"
    named: list[Any] = [{"Fall" if n == "patient_id" else n: c for n, c in r.items()} for r in rows]
    assert service.describe_columns(named) == ""
    assert [case.record["patient_id"] for case in service.list_cases(named, {})] == [
        row["patient_id"] for row in rows
    ]
    from_names = [row["malignancy"] for row in service.predict_table(named, {})]
    assert from_names == [row["malignancy"] for row in answers]
    pytest.importorskip("gradio")
    from skinmm.serve.rendering import Result, render_result

    page = render_result(Result(Case([], rows[1]), row, explanation, service.card))
    assert f"Cannot be computed from one lesion: {', '.join(RELATIVE)}." in page
    assert "Not provided" not in page


def test_what_cannot_be_read_twice_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    job = [f"checkpoint={best(run)}", f"input={tmp_path / 'pipe'}"]
    assert main.predict([*job, f"output={tmp_path / 'out.csv'}"]) == 2
    assert "cannot be read twice, as data.relative needs; use a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["export"], "skinmm export"),
        (["dicom-sr", "input=.", "out=sr"], "skinmm dicom-sr"),
        (["predict-spark", "input=a.parquet", "output=b.parquet"], "skinmm predict-spark"),
    ],
)
def test_features_that_see_single_rows_refuse_the_checkpoint(
    words: list[str], name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "skinmm dicom-sr":
        pytest.importorskip("highdicom")
    assert main.main([words[0], f"checkpoint={best(run)}", *words[1:]]) == 2
    message = f"error: {name}: not available for a checkpoint trained with data.relative"
    assert capsys.readouterr().err.startswith(message)


def test_the_page_in_a_browser_refuses_the_checkpoint(run: Path) -> None:
    pytest.importorskip("fastapi")
    from skinmm.serve.browser import require_supported

    (model,) = load_models(best(run), select_device("cpu"))
    with pytest.raises(InputError, match="not available for a checkpoint trained with"):
        require_supported(model, best(run))


def test_training_refuses_lesions_of_several_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.columns=[age,area]", "data.relative=[area]", "data.unit=lesion")
    assert quick_train(tmp_path / "run", *tabular(run.parent), *settings) == 2
    assert "data.relative=['area']: not used by data.unit=lesion" in capsys.readouterr().err
