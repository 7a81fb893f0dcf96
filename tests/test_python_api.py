"""The API that `import skinmm` offers: a committed list of names, and what the calls return."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pytest
from quick_runs import QUICK, ROOT, metrics_of, predictions_of
from sklearn.metrics import roc_auc_score

import skinmm
from skinmm.errors import InputError

SIGNATURES: Final = json.loads((ROOT / "tests" / "api.json").read_text(encoding="utf-8"))


def describe(value: object) -> dict[str, str]:
    """The signature of a function, or of each public method of a class."""
    if inspect.isfunction(value):
        return {"": str(inspect.signature(value))}
    assert inspect.isclass(value)
    signatures = {}
    for name, member in vars(value).items():
        if not name.startswith("_"):
            function = getattr(member, "__func__", member)
            is_function = inspect.isfunction(function)
            signatures[name] = str(inspect.signature(function)) if is_function else "property"
    return signatures


def test_names_and_signatures_are_those_of_the_committed_list() -> None:
    present = {name: describe(getattr(skinmm, name)) for name in skinmm.__all__}
    assert present == SIGNATURES, "a change of the API: edit tests/api.json and CHANGELOG.md"


def test_the_package_is_imported_without_its_libraries() -> None:
    code = "import sys, skinmm; print(*({'torch', 'pandas', 'numpy', 'hydra'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'traim'"):
        _ = skinmm.traim  # type: ignore[attr-defined]
    assert {"fit", "Predictor", "__version__"} <= {*dir(skinmm)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> "skinmm.Run":
    """A run of the API."""
    folder = tmp_path_factory.mktemp("runs") / "api (1)"
    words = [word for word in QUICK if not word.startswith(("model=", "trainer="))]
    data = {"limit": 48, "columns": ["age", "sex"]}
    return skinmm.fit(*words, model="tiny", trainer="debug", seed=3, data=data, output=folder)


def test_a_run_has_the_numbers_of_its_folder(run: "skinmm.Run") -> None:
    stored = metrics_of(run.path)["test"]["metrics"]
    for name, entry in stored.items():
        given = [np.nan if entry[key] is None else entry[key] for key in ("value", "low", "high")]
        np.testing.assert_array_equal(run.metrics.loc[name].to_numpy(), given)
    rows = run.predictions
    area = roc_auc_score(rows["target"], rows["p_malignant"])
    assert run.metrics.loc["auroc", "value"] == pytest.approx(area)
    pd.testing.assert_frame_equal(run.read_predictions(), predictions_of(run.path))
    assert run.config["seed"] == 3
    assert run.config["data"]["columns"] == ["age", "sex"]
    assert run.report.is_file()
    assert skinmm.load_run(run.path).path == run.path
    with pytest.raises(InputError, match=r"rest: no predictions of this part; choose from .*val"):
        run.read_predictions("rest")


def test_a_run_is_displayed_with_table_and_curves(run: "skinmm.Run") -> None:
    html = run._repr_html_()
    assert html.count("<svg") == 2
    assert all(text in html for text in ("ROC curve", "alibration", "<table", "AUROC"))
    assert {"ROC curve", "Decision curve"} <= run.figures.keys()
    assert "<svg" in run.figures["ROC curve"].svg


def test_the_predictor_of_a_run_is_that_of_its_checkpoint(run: "skinmm.Run") -> None:
    cohort = skinmm.load_cohort()
    rows = cohort[cohort["image_id"].isin(run.predictions["image_id"])].head(4)
    given = run.predictor().predict(rows, ROOT / "skinmm" / "demo" / "images")
    expected = run.predictions.set_index("image_id").loc[given["image_id"], "p_malignant"]
    np.testing.assert_allclose(given["p_malignant"], expected, atol=1e-5)


def test_a_table_and_a_run_have_the_same_metrics(run: "skinmm.Run", tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    evaluation = skinmm.evaluate(run.predictions, report=page)
    pd.testing.assert_series_equal(
        evaluation.metrics["value"].loc[["auroc"]], run.metrics["value"].loc[["auroc"]]
    )
    assert page.is_file()
    flipped = run.predictions.assign(
        p_malignant=run.predictions["p_benign"], p_benign=run.predictions["p_malignant"]
    )
    comparison = skinmm.compare(run, flipped=flipped)
    assert [*comparison.tables["Systems"]["System"]] == [run.path.name, "flipped"]
    assert "ROC curves" in comparison.figures
    assert "<table" in comparison._repr_html_()


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["modle=tiny"], {}, "unknown key 'modle'; did you mean model"),
        ([], {"model": "effnet_b33"}, "unknown model 'effnet_b33'; choose from"),
        ([], {"trainer": {"max_epochs": 0}}, "trainer.max_epochs=0: must be between 1"),
        ([], {"trainer": {"devices": 2}}, "fit trains one run in this process"),
        ([], {"experiment": "fusion_study"}, "fit trains one run in this process"),
    ],
)
def test_mistakes_are_refused(words: list[str], settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        skinmm.fit(*words, **settings)  # type: ignore[arg-type]


def test_a_config_trains_what_its_settings_train(run: "skinmm.Run", tmp_path: Path) -> None:
    words = [word for word in QUICK if not word.startswith(("model=", "trainer="))]
    data = {"limit": 48, "columns": ["age", "sex"]}
    config = skinmm.build_config(*words, model="tiny", trainer="debug", data=data)
    config.seed = 3
    again = skinmm.fit(config, output=tmp_path / "again")
    assert again.config == run.config
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


def test_a_config_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    config = skinmm.build_config(model="tiny")
    with pytest.raises(InputError, match=r"needs output=FOLDER"):
        skinmm.fit(config)
    with pytest.raises(InputError, match="one Config or settings, not both"):
        skinmm.fit(config, "seed=1", output=tmp_path)
    with pytest.raises(InputError, match="one Config or settings, not both"):
        skinmm.fit(config, seed=1, output=tmp_path)
    config.trainer.max_epochs = 0
    with pytest.raises(InputError, match=r"trainer.max_epochs=0: must be between 1"):
        skinmm.fit(config, output=tmp_path)
    config.trainer.max_epochs, config.resume = 1, str(tmp_path)
    with pytest.raises(InputError, match=r"use skinmm.fit\(resume=FOLDER\)"):
        skinmm.fit(config, output=tmp_path)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a finished run .*skinmm.fit"):
        skinmm.load_run(tmp_path)


def test_evaluate_takes_one_positive_class_and_names_the_table_in_errors() -> None:
    table = pd.DataFrame({"image_id": ["a", "b", "c", "d"], "target": ["mel", "nv"] * 2})
    with pytest.raises(InputError, match=r"^the table has no probabilities: "):
        skinmm.evaluate(table)
    table = table.assign(p_mel=[0.9, 0.2, 0.6, 0.4], p_nv=[0.1, 0.8, 0.4, 0.6])
    by_name = skinmm.evaluate(table, positive="mel").metrics
    pd.testing.assert_frame_equal(by_name, skinmm.evaluate(table, positive=["mel"]).metrics)
