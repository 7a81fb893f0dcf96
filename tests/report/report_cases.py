"""Real predictions for the pages: models of the record, fitted on the included cohort."""

import json
from dataclasses import asdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import yaml
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import skinmm
from skinmm.data.audit import audit
from skinmm.evaluation.conformal import ConformalPredictor, fit_conformal
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import format_sets, read_predictions
from skinmm.evaluation.referral import cross_fit_ood, decide
from skinmm.evaluation.thresholds import ReferralBand, fit_band
from skinmm.report import report_predictions

THRESHOLD = 0.15
CONFIG = {
    "data": {"name": "demo", "columns": ["age", "sex", "site"], "folds": 5, "fold": 0},
    "model": {"name": "tf_efficientnet_lite0", "image_size": 224},
    "fusion": {"name": "concat", "args": {}},
    "loss": {"name": "cross_entropy"},
    "sampler": {"name": "balanced"},
    "optimizer": {"name": "adamw", "lr": 0.001},
    "trainer": {"max_epochs": 6, "monitor": "val/auroc"},
    "evaluation": {"confidence": 0.95},
}


class Page(HTMLParser):
    """A page as a browser's parser sees it: tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        """Reads a page."""
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def record_features() -> Any:
    """Age, sex and site as a model of the record reads them."""
    age = make_pipeline(SimpleImputer(), StandardScaler())
    words = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="missing"),
        OneHotEncoder(handle_unknown="ignore"),
    )
    return make_column_transformer((age, ["age"]), (words, ["sex", "site"]))


@cache
def demo_cohort() -> pd.DataFrame:
    """The included cohort, every fifth row test, the next validation."""
    folder = Path(skinmm.__file__).parent / "demo"
    table = pd.read_csv(folder / "cohort.csv")
    paths = [str(folder / "images" / f"{name}.jpg") for name in table["image_id"]]
    table = table.assign(path=paths, patient_id=table["image_id"], source="isic_2017")
    fold = np.arange(len(table)) % 5
    part = np.select([fold == 0, fold == 1], ["test", "val"], "train")
    return table.assign(width=256, height=256, fold=fold, part=part)


@cache
def fitted(target: str = "target", **options: Any) -> pd.DataFrame:
    """Out-of-fold probabilities of a logistic regression as a prediction file."""
    cohort = demo_cohort()
    model = make_pipeline(record_features(), LogisticRegression(max_iter=500, **options))
    truth = cohort[target].to_numpy()
    shares = cross_val_predict(model, cohort, truth, cv=5, method="predict_proba")
    names = ["benign", "malignant"] if target == "target" else sorted(set(truth))
    ids = {"image_id": cohort["image_id"], "patient_id": cohort["image_id"], "target": truth}
    return pd.DataFrame(ids | {f"p_{name}": shares[:, i] for i, name in enumerate(names)})


def _lacking(count: int) -> pd.DataFrame:
    """Test rows without the first columns of their record, by a model of whole ones."""
    cohort = demo_cohort()
    model = make_pipeline(record_features(), LogisticRegression(max_iter=500))
    model.fit(cohort, cohort["target"])
    rows = cohort[cohort["part"] == "test"].astype(object)
    rows[["age", "sex", "site"][:count]] = np.nan
    return rows[["image_id", "patient_id", "target"]].assign(
        p_malignant=model.predict_proba(rows)[:, 1]
    )


def make_run(folder: Path) -> Path:
    """A whole run folder below `folder`, its numbers from models that scikit-learn fitted."""
    run = folder / "2026-01-01_demo"
    (run / "predictions").mkdir(parents=True)
    for name, table in _tables().items():
        table.to_csv(run / name, index=False)
    for name, content in _documents().items():
        (run / name).write_text(content, encoding="utf-8")
    return run


@cache
def _tables() -> dict[str, pd.DataFrame]:
    cohort, balanced = demo_cohort(), fitted(class_weight="balanced")
    raw = {f"raw_{name}": balanced[f"p_{name}"] for name in ("benign", "malignant")}
    table = fitted().assign(**raw)
    features = record_features().fit_transform(cohort).astype(np.float32)
    usual = cross_fit_ood(features[cohort["part"] == "val"], np.arange(140))
    sets = _conformal().predict_sets(table[["p_benign", "p_malignant"]].to_numpy())
    ood = usual[0].score(features) if usual else None
    called = (table["p_malignant"] >= THRESHOLD).to_numpy()
    table["decision"] = decide(
        called, _band().is_safe(called, table["p_malignant"].to_numpy()), ood
    )
    table["prediction_set"] = format_sets(sets, ("benign", "malignant"))
    table["ood"] = ood
    rows = {part: table[cohort["part"] == part] for part in ("test", "val")}
    files = {f"predictions/{part}.csv": part_rows for part, part_rows in rows.items()}
    return {**files, "cohort.csv": cohort, "history.csv": _history(cohort)}


@cache
def _band() -> ReferralBand:
    """Referred probabilities that the validation rows give."""
    val = demo_cohort()["part"] == "val"
    scores, truth = (fitted()[name][val].to_numpy() for name in ("p_malignant", "target"))
    targets = {"miss_rate": 0.01, "false_alarm_rate": 0.1}
    return fit_band(scores, truth == 1, np.arange(val.sum()), **targets)


@cache
def _conformal() -> ConformalPredictor:
    """Sets that the validation rows give."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "val.csv"
        fitted()[demo_cohort()["part"] == "val"].to_csv(file, index=False)
        return fit_conformal(read_predictions(file))


@cache
def _documents() -> dict[str, str]:
    metrics: dict[str, Any] = {
        "schema": 1,
        "initialisation": "FROM SCRATCH: no weights here",
        "threshold": {"value": THRESHOLD, "rule": "sensitivity", "guaranteed": False},
        "calibration": {"method": "platt"},
        "band": asdict(_band()),
        "conformal": asdict(_conformal()),
    }
    with TemporaryDirectory() as folder:
        for part in ("test", "val"):
            file = Path(folder) / f"{part}.csv"
            _tables()[f"predictions/{part}.csv"].to_csv(file, index=False)
            rows = read_predictions(file)
            metrics[part] = evaluate(rows, threshold=THRESHOLD, resamples=100)
        for count in (1, 2, 3):
            file = Path(folder) / "lacking.csv"
            _lacking(count).to_csv(file, index=False)
            rows = read_predictions(file)
            metrics[f"missing_{count}_of_3"] = evaluate(rows, threshold=THRESHOLD, resamples=100)
    return {
        "metrics.json": json.dumps(metrics),
        "config.yaml": yaml.safe_dump(CONFIG),
        "audit.json": json.dumps(audit(demo_cohort())),
        "environment.json": json.dumps({"skinmm": "0", "command": ["train.py"]}),
    }


def _history(cohort: pd.DataFrame) -> pd.DataFrame:
    """The losses of a small network over its epochs."""
    network = MLPClassifier((8,), max_iter=12, n_iter_no_change=12, tol=0, random_state=0)
    x = record_features().fit_transform(cohort)
    losses = []
    for epoch in range(6):
        network.partial_fit(x, cohort["target"].to_numpy(), classes=[0, 1])
        losses.append((epoch, 5 * epoch, "train/loss", network.loss_))
        losses.append((epoch, 5 * epoch, "val/auroc", network.score(x, cohort["target"])))
    losses.append((5, 29, "test/brier", 0.1))
    return pd.DataFrame(losses, columns=["epoch", "step", "name", "value"])


def report_file(predictions: Path, output: Path, *options: Path) -> Page:
    """Write the report of a prediction file, and read its page."""
    report_predictions(predictions, output, *options)
    return Page(output)
