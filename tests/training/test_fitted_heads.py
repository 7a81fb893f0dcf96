"""Fitted heads through the whole house: train, report, predict, explain, serve and export."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from micro_runs import table_cohort
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train

from skinmm.cli import main
from skinmm.config.commands import ExportConfig
from skinmm.config.remote_commands import ServeConfig
from skinmm.predict import Predictor, export_onnx
from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.loading import CaseImage
from skinmm.serve.app import RequestQueue, create_app
from skinmm.serve.rendering import Result, render_result

needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="needs skinmm[onnx]"
)
Printed = pytest.CaptureFixture[str]
MEASUREMENTS = [f"tbp_lv_{number}" for number in range(36)]


@pytest.fixture(scope="module", params=["linear", "boosting"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose head is fitted to features of a frozen network and the record."""
    folder = tmp_path_factory.mktemp("heads") / request.param
    args = ["head.args.rounds=20"] if request.param == "boosting" else []
    head = (f"head={request.param}", "head.args.components=8", *args)
    assert quick_train(folder, "data.limit=48", *head) == 0
    return folder


def test_prediction_repeats_the_run(run: Path, pictures: Path) -> None:
    written = predictions_of(run)
    again = Predictor.from_checkpoints([best(run)], "cpu").predict(cohort_of(run), pictures)
    np.testing.assert_allclose(again["p_malignant"], written["p_malignant"], atol=1e-5)
    assert written["p_malignant"].nunique() > 2


def test_the_pages_describe_the_fit_and_no_epochs(run: Path) -> None:
    fitting = metrics_of(run)["fitted_head"]
    assert fitting["log_loss"] < 1
    assert {"C"} <= fitting.keys() or {"rounds", "max_leaf_nodes"} <= fitting.keys()
    card = (run / "card.md").read_text()
    assert f"head {run.name}" in card
    assert "inner folds over training patients selected its hyper-parameters" in card
    assert "Early stopping" not in card
    assert "learning rate" not in card


@needs_onnx
def test_onnx_gives_the_same_probabilities(run: Path, pictures: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copy(best(run), tmp_path / "best.ckpt"))
    export_onnx.export(ExportConfig(str(checkpoint), rows=9))
    table = cohort_of(run).head(20)
    torch, onnx = (
        Predictor.from_checkpoints(checkpoint, "cpu", backend=name).predict(table, pictures)
        for name in ("torch", "onnx")
    )
    np.testing.assert_allclose(onnx["p_malignant"], torch["p_malignant"], atol=1e-4)


def test_a_case_is_explained(run: Path, pictures: Path) -> None:
    predictor = CasePredictor(ServeConfig(accelerator="cpu"), [best(run)])
    row = cohort_of(run).iloc[0]
    image = next(pictures.glob(f"{row['image_id']}.*")).read_bytes()
    record = {"age": str(row["age"]), "sex": str(row["sex"]), "site": "torso"}
    prediction, explanation = predictor.predict_and_explain(Case([CaseImage(image)], record))
    assert explanation is not None
    parts = explanation.contributions
    explained = parts.start + sum(parts.added.values())
    assert explained == pytest.approx(prediction["malignancy"], abs=1e-5)
    assert (not explanation.heats) == (run.name == "boosting")  # trees have no gradients


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("augment=standard", "augment=standard: not used by head=linear; use augment=none"),
        ("loss=focal", "loss=focal: not used by head=linear; use loss=cross_entropy or"),
        ("model.drop_columns=0.1", "model.drop_columns=0.1: not used by head=linear; remove it"),
        ("trainer.ema=0.9", "trainer.ema=0.9: not used by head=linear; remove it"),
        ("optimizer.head_epochs=1", "optimizer.head_epochs=1: not used by head=linear; remove it"),
        ("model.freeze=false", "image has weights to train; set model.freeze=true"),
        ("tabular=mlp", "record has weights to train; set tabular=raw"),
    ],
)
def test_a_setting_without_use_is_refused(
    setting: str, message: str, tmp_path: Path, capsys: Printed
) -> None:
    assert quick_train(tmp_path / "run", "head=linear", "data.limit=48", setting) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_folds_and_the_final_model_of_a_record_alone(tmp_path: Path) -> None:
    data = table_cohort(tmp_path)
    cohort = ("data=csv", f"data.root={data.root}", "data.fold=all", "data.folds=3", "final=true")
    options = ("head=boosting", "head.args.rounds=20", "fusion=tabular_only", *cohort)
    assert quick_train(tmp_path / "run", *options) == 0
    assert metrics_of(tmp_path / "run")["test"]["metrics"]["auroc"]["value"] > 0.6
    assert "was then fitted to all 120 rows" in (tmp_path / "run" / "card.md").read_text()
    table = pd.DataFrame({"image": ["x", "y"], "age": [20, 90]})
    for name in ("ensemble", "final"):
        file = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        old, young = Predictor.from_checkpoints(file).predict(table)["malignancy"][::-1]
        assert old > young


def isic_2024(root: Path, pictures: Path) -> list[str]:
    """Write real pictures in the layout of ISIC 2024, and return its forty columns."""
    rng = np.random.default_rng(0)
    files = sorted(pictures.iterdir())[:90]
    target = np.repeat(np.arange(45) % 3 == 0, 2).astype(int)
    table = pd.DataFrame(
        {
            "isic_id": [file.stem for file in files],
            "patient_id": [f"P{row // 2}" for row in range(90)],
            "target": target,
            "age_approx": rng.integers(20, 80, 90),
            "sex": rng.choice(["male", "female"], 90),
            "anatom_site_general": rng.choice(["head/neck", "posterior torso"], 90),
            "clin_size_long_diam_mm": rng.normal(4 + target, 1).round(2),
            **{name: rng.normal(size=90).round(3) for name in MEASUREMENTS},
        }
    )
    table["tbp_lv_0"] += 2 * target
    table.to_csv(root / "train-metadata.csv", index=False)
    (root / "train-image").mkdir()
    for file in files:
        shutil.copy(file, root / "train-image")
    return ["age", "sex", "site", "clin_size_long_diam_mm", *MEASUREMENTS]


def test_boosting_with_the_forty_columns_of_isic_2024(tmp_path: Path, pictures: Path) -> None:
    columns = isic_2024(tmp_path, pictures)
    assert len(columns) == 40
    data = ("data=isic_2024", f"data.root={tmp_path}", f"data.columns=[{','.join(columns)}]")
    run = tmp_path / "run"
    assert quick_train(run, "head=boosting", "head.args.rounds=20", *data) == 0
    table, output = tmp_path / "train-metadata.csv", tmp_path / "out.csv"
    folder = tmp_path / "train-image"
    command = [f"checkpoint={best(run)}", f"input={table}", f"images={folder}", f"output={output}"]
    assert main.predict([*command, f"explain={tmp_path / 'explained'}"]) == 0
    rows = pd.read_csv(output)
    assert rows["error"].isna().all()
    truth = pd.read_csv(table)["target"] == 1
    assert rows["malignancy"][truth].mean() > rows["malignancy"][~truth].mean() + 0.1
    explained = pd.read_csv(tmp_path / "explained" / "explanations.csv")
    np.testing.assert_allclose(explained["explained"], rows["malignancy"], atol=1e-5)
    added = explained.filter(regex="^added_")
    assert {*added} == {"added_image", *(f"added_{name}" for name in columns)}
    assert added.abs().mean().idxmax() in ("added_tbp_lv_0", "added_clin_size_long_diam_mm")
    assert explained["standard_error"].between(0, 0.02, inclusive="right").all()
    service = CasePredictor(ServeConfig(accelerator="cpu"), [best(run)])
    client = TestClient(create_app(service, RequestQueue(1, 60.0)))
    row = pd.read_csv(table, dtype=str).iloc[0]
    form = {"age": row["age_approx"], "sex": row["sex"], **{n: row[n] for n in columns[3:]}}
    image = (folder / f"{row['isic_id']}.jpg").read_bytes()
    answer = client.post("/v1/predict", files={"image": image}, data=form)
    assert answer.status_code == 200, answer.text
    same = Predictor.from_checkpoints([best(run)]).predict(
        pd.DataFrame([{**row, "anatom_site_general": None}]), folder
    )
    assert answer.json()["malignancy"] == pytest.approx(float(same["malignancy"][0]), abs=1e-5)
    answer = client.post("/v1/explain", files={"image": image}, data=form).json()
    parts = answer["added"]
    assert {*parts} == {*columns, "image"} - {"site"}  # the form has no site
    assert {*answer["standard_errors"]} == {*parts}
    assert answer["start"] + sum(parts.values()) == pytest.approx(answer["malignancy"], abs=1e-5)
    case = Case([CaseImage(image)], form)
    prediction, explanation = service.predict_and_explain(case)
    assert explanation is not None
    page = render_result(Result(case, prediction, explanation, service.card))
    assert f'<th scope="row">{len(parts) - 10} others</th>' in page
    assert "These changes are estimated, with standard errors of up to" in page
