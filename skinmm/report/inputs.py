"""Inputs of a page, read once: the files of a run folder, or a prediction file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from skinmm.config import name_cohort
from skinmm.config.checkpoints import FINAL
from skinmm.errors import InputError, one_line, print_line, warn
from skinmm.evaluation.call_rules import parse_costs
from skinmm.evaluation.metrics import evaluate, evaluate_clinic
from skinmm.evaluation.other_formats import TableFormat
from skinmm.evaluation.prediction_tables import IMAGE_EXTENSIONS, read_tables, read_threshold
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.vocabulary import CONVERTERS, describe_unused_columns, name_units, parse_column

_TEXT_COLUMNS: Final = (
    *("image_id", "path", "patient_id", "lesion_id"),
    *("source", "cohort", "target", "diagnosis", "name"),
)
_USED: Final = frozenset(
    (
        *(*_TEXT_COLUMNS, *CONVERTERS, "width", "height", "part", "malignancy", "decision", "unit"),
        *("threshold", "error", "prediction_set", "ood", "missing", "called", "fold"),
        "images",
    )
)
"""Columns of a prediction file that pages use, besides `p_<class>` and `raw_<class>`."""
_FITTED: Final = ("band", "conformal", "fitted_on", "selection", "fitted_head", "checkpoint")
"""Entries of metrics.json that also describe a single prediction file of the run."""


@dataclass(frozen=True)
class ReportInputs:
    """Predictions, their metrics, and the files of the run that made them.

    Attributes:
        title: name of the run folder or prediction file.
        day: date of the run, or of the prediction file.
        predictions: evaluated rows.
        measured: `evaluate` of these rows.
        metrics: metrics.json of the run; empty for a prediction file.
        config: configuration of the run; empty for a prediction file.
        history: columns epoch, step, name, value, and `run` (name of the fold's folder).
        cohort: canonical rows with part and fold.
        audit: findings of the cohort's audit.
        environment: versions and hardware.
        pictures: whether the page may show lesions.
        explanations: image id -> points that each input `added`, and path of the `picture`.
        notes: lines on the columns of a prediction file.
        costs: of errors, as `evaluation.costs`, instead of those in `config`; None: not given.
    """

    title: str
    predictions: Predictions
    measured: Mapping[str, Any]
    day: date | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    history: pd.DataFrame | None = None
    cohort: pd.DataFrame | None = None
    audit: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = True
    explanations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    costs: Mapping[str, Any] | None = None

    @property
    def threshold(self) -> float:
        """Probability from which a lesion is classified as malignant."""
        return float(self.measured["threshold"])

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Section `evaluation` of the configuration; empty if unknown."""
        return self.config.get("evaluation", {})

    @property
    def confidence(self) -> float:
        """Confidence level of the intervals."""
        return float(self.evaluation.get("confidence", 0.95))

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """Cohort rows in the order of the predictions; missing cells for unknown images."""
        if self.cohort is None or "image_id" not in self.cohort:
            return None
        names = self.cohort["image_id"].str.replace(IMAGE_EXTENSIONS, "", regex=True)
        unique = self.cohort.assign(image_id=names).drop_duplicates("image_id")
        image_ids = pd.Series(self.predictions.image_id)
        image_ids = image_ids.str.replace(IMAGE_EXTENSIONS, "", regex=True)
        return unique.set_index("image_id").reindex(image_ids)

    @cached_property
    def units(self) -> "pd.Series[str]":
        """Unit of each predicted row: its patient, else its lesion, else its image."""
        rows, records = self.predictions, self.records
        if records is None or "lesion_id" not in records:
            return pd.Series(rows.list_units(), dtype=object)
        ids = {"image_id": rows.image_id, "patient_id": rows.patient_id}
        return name_units(pd.DataFrame({**ids, "lesion_id": records["lesion_id"].to_numpy()}))

    @property
    def final(self) -> Mapping[str, Any]:
        """Facts on the final network, trained on all rows; empty without one."""
        return self.metrics.get(FINAL) or {}

    def fitted(self, name: str) -> Mapping[str, Any]:
        """Return the fitted `threshold`, `band`, `conformal` or `calibration`; empty if unknown.

        Threshold and band belong to the checkpoint that the card names.
        """
        is_final = self.final and name in ("threshold", "band")
        state = (self.final if is_final else self.metrics).get(name)
        return state if isinstance(state, Mapping) else {}

    @property
    def has_fitted_head(self) -> bool:
        """Return whether the head is linear or boosting; then no epoch was selected."""
        return bool(name_fitted_head(self.config)) or "fitted_head" in self.metrics

    @property
    def fitting_rows(self) -> str:
        """Rows used to fit threshold and band: `calibration`, `val`, or `folds` (pooled)."""
        part = str(self.metrics.get("fitted_on", "val"))
        return "folds" if self.predictions.fold is not None or part == "mixed" else part

    @property
    def checkpoint(self) -> str:
        """Path of the checkpoint to predict with, in the run folder."""
        folds = "" if self.predictions.fold is None else "fold_*/"
        pooled = self.metrics.get("checkpoint") or f"{folds}checkpoints/best.ckpt"
        return str(self.final.get("checkpoint", pooled))

    def estimate(self, name: str) -> Mapping[str, Any]:
        """Return value, low and high of a metric; empty if it is missing."""
        return self.measured["metrics"].get(name) or {}

    def value(self, name: str) -> float | None:
        """Return the value of a metric; None if it is undefined."""
        return self.estimate(name).get("value")

    def restate(
        self, prevalence: float | None, costs: Mapping[str, Any] | None = None
    ) -> "ReportInputs":
        """Return the inputs with another clinic's prevalence and costs of errors."""
        if costs is not None:
            parse_costs(costs, self.predictions.classes)  # refuses wrong ones
            return replace(self, costs=costs).restate(prevalence)
        if prevalence is None:
            return self
        clinic = evaluate_clinic(
            self.predictions,
            threshold=self.threshold,
            prevalence=prevalence,
            confidence=self.confidence,
        )
        return replace(self, measured={**self.measured, "clinic": clinic})


def read_run(run: Path, *, pictures: bool | None) -> ReportInputs:
    """Read a run folder; only `predictions/test.csv` is required.

    For the parent of several folds, cohort and history come from the folds. With `pictures=None`,
    `report.pictures` of the run decides whether lesions are shown.
    """
    file = run / "predictions" / "test.csv"
    if not file.is_file():
        raise InputError(
            f"{run}: nothing to report (predictions/test.csv is missing); give a run folder"
        )
    folders = sorted(run.glob("fold_*"), key=lambda folder: (len(folder.name), folder.name))
    folders.insert(0, run)
    environment = _read_first(folders, "environment.json")
    metrics, config = read_mapping(run / "metrics.json"), _read_first(folders, "config.yaml")
    data = config.get("data", {})
    positive = metrics.get("positive") or data.get("positive") or None
    predictions = read_predictions(file, positive=positive, allow_one_class=True)
    tables = [(folder.name, _read_csv(folder / "history.csv")) for folder in folders]
    histories = [table.assign(run=name) for name, table in tables if not table.empty]
    cohorts = (_read_cohort(folder / "cohort.csv", data) for folder in folders[:2])
    return ReportInputs(
        title=run.resolve().name,
        day=date.fromisoformat(environment["date"]) if "date" in environment else _date(file),
        predictions=predictions,
        measured=_complete(metrics.get("test"), predictions, config.get("evaluation", {})),
        metrics=metrics,
        config=config,
        history=pd.concat(histories, ignore_index=True) if histories else None,
        cohort=next((table for table in cohorts if not table.empty), None),
        audit=_read_first(folders, "audit.json"),
        environment=environment,
        pictures=config.get("report", {}).get("pictures", True) if pictures is None else pictures,
        explanations={
            name: {**entry, "picture": folder / "explanations" / entry["picture"]}
            for folder in folders
            for name, entry in read_mapping(folder / "explanations" / "mistakes.json").items()
        },
    )


def read_prediction_file(
    file: Path,
    labels: Path | None = None,
    positive: Sequence[str] | None = None,
    *,
    pictures: bool,
    form: TableFormat | None = None,
) -> ReportInputs:
    """Read the prediction file of any system; records come from the labels or the same file.

    A file without a threshold that lies in a run folder has the threshold and band of this run,
    unless other classes count as malignant.
    """
    is_of_run = file.resolve().parent.name == "predictions"
    run = read_mapping(file.resolve().parents[1] / "metrics.json") if is_of_run else {}
    predictions = read_predictions(file, labels, positive or run.get("positive"), form=form)
    table, truth = read_tables(file, labels, form)
    metrics: dict[str, Any] = {}
    threshold, classes = read_threshold(table, file), predictions.positive
    if threshold is not None:
        metrics["threshold"] = {"rule": "stated in the file"}
    elif "threshold" not in table and {*run.get("positive", classes)} == {*classes}:
        threshold = run.get("test", {}).get("threshold")
        if threshold is not None:
            metrics = {name: run[name] for name in _FITTED if name in run}
            metrics["threshold"] = {"rule": "that of its run"}
            print_line(f"{file}: threshold {threshold:.3f}, from the metrics.json of its run")
    cohort = table if truth is None else truth
    notes = _describe_columns([*table, *cohort])
    if run and file.stem == run.get("fitted_on", "val"):
        notes.append("the run fitted its threshold to these rows, so the figures are optimistic")
    if {*predictions.malignancy.tolist()} <= {0, 1}:
        notes.append("all probabilities are 0 or 1: are they decisions, or columns exchanged?")
    for note in notes:
        warn(f"{file}: {note}")
    columns = {name: parse_column(cohort[name], name)[0] for name in CONVERTERS if name in cohort}
    return ReportInputs(
        title=file.name,
        day=_date(file),
        predictions=predictions,
        measured=evaluate(predictions, threshold=threshold),
        metrics=metrics,
        cohort=cohort.assign(**columns),
        pictures=pictures,
        notes=notes,
    )


def name_fitted_head(config: Mapping[str, Any]) -> str:
    """Return the name of a head fitted to features; "" for a neural head."""
    name = config.get("head", {}).get("name", "neural")
    return "" if name == "neural" else str(name)


def _describe_columns(names: Sequence[str]) -> list[str]:
    """Describe unused columns if no row names a patient or lesion."""
    if {"patient_id", "lesion_id"} & {*names}:
        return []
    unused = [n for n in names if n not in _USED and not n.startswith(("p_", "raw_", "half_"))]
    if line := describe_unused_columns([*dict.fromkeys(unused)]):
        return [f"no column patient_id or lesion_id: every image counts as a patient; {line}"]
    return []


def _complete(
    test: Mapping[str, Any] | None, predictions: Predictions, evaluation: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the metrics of a run; compute metrics that an earlier version did not write."""
    if test and "clinic" in test:
        return test
    names = {"prevalence", "resamples", "confidence"} & evaluation.keys()
    settings = {name: evaluation[name] for name in names}
    added = evaluate(predictions, threshold=test["threshold"] if test else None, **settings)
    return {**added, **test, "metrics": added["metrics"] | test["metrics"]} if test else added


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object or a YAML mapping; empty if the file does not exist."""
    is_yaml = path.suffix == ".yaml"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
        return dict(yaml.safe_load(text) if is_yaml else json.loads(text))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        kind = "a YAML mapping" if is_yaml else "a JSON object"
        raise InputError(f"{path}: not {kind} ({' '.join(str(error).split())})") from error


def _read_first(folders: Sequence[Path], name: str) -> dict[str, Any]:
    """Return the content of a file in the run folder, or else in its first fold."""
    return next(filter(None, (read_mapping(folder / name) for folder in folders[:2])), {})


def _date(file: Path) -> date:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).astimezone().date()


def _read_cohort(path: Path, data: Mapping[str, Any]) -> pd.DataFrame:
    """Read cohort.csv; the only source of a table of one's own gets the name of its folder."""
    table, name = _read_csv(path), data.get("name")
    if name and {"source", "cohort"} <= {*table}:
        table["source"] = table["source"].replace(name, name_cohort(data))
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        text = dict.fromkeys(_TEXT_COLUMNS, str)
        return pd.read_csv(path, dtype=text) if path.is_file() else pd.DataFrame()
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a CSV table ({one_line(error)})") from error
