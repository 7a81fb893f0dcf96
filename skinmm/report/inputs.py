"""What a page is written from: a run folder or a bare prediction file, read once."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from skinmm.errors import InputError
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.prediction_files import read_table
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.files import IMAGE_SUFFIXES
from skinmm.vocabulary import CONVERTERS, parse_column

STATED: Final = "stated in the file"
_EXTENSIONS: Final = rf"(?i)(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})$"


@dataclass(frozen=True)
class ReportInputs:
    """Predictions, what was measured on them, and whatever else is known of their origin.

    Attributes:
        title: what the page is about.
        predictions: the rows that are judged.
        measured: `evaluate` of these rows.
        metrics: metrics.json of the run, empty for a bare file.
        config: the run's configuration, empty for a bare file.
        history: columns epoch, step, name, value, and `run` (the fold's name, or empty).
        cohort: canonical rows with part and fold.
        audit: the outcome of the cohort's audit.
        environment: versions and hardware.
        pictures: whether lesions may be shown.
        explanations: of images by their names, what each input `added` and the `picture`'s path.
    """

    title: str
    predictions: Predictions
    measured: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    history: pd.DataFrame | None = None
    cohort: pd.DataFrame | None = None
    audit: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = True
    explanations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """Probability of malignancy from which a lesion is called malignant."""
        return float(self.measured["threshold"])

    @property
    def rule(self) -> Mapping[str, Any]:
        """How the threshold was chosen: `rule` and `guaranteed`; empty where nobody chose it."""
        found = self.metrics.get("threshold")
        return found if isinstance(found, Mapping) else {}

    @property
    def conformal(self) -> Mapping[str, Any]:
        """How prediction sets were made: `coverage`, `limits`, `rows`; empty where not known."""
        found = self.metrics.get("conformal")
        return found if isinstance(found, Mapping) else {}

    @property
    def coverage(self) -> float | None:
        """What prediction sets were made for, where that is known."""
        stated: float | None = self.config.get("evaluation", {}).get("coverage")
        return self.conformal.get("coverage", stated)

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return float(self.config.get("evaluation", {}).get("confidence", 0.95))

    @property
    def initialisation(self) -> str | None:
        """What the image network started from, where that is known."""
        value: str | None = self.metrics.get("initialisation")
        return value

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """The cohort's rows of the predictions, in their order; missing where an id is unknown."""
        if self.cohort is None or "image_id" not in self.cohort:
            return None
        names = self.cohort["image_id"].str.replace(_EXTENSIONS, "", regex=True)
        unique = self.cohort.assign(image_id=names).drop_duplicates("image_id")
        wanted = pd.Series(self.predictions.image_id).str.replace(_EXTENSIONS, "", regex=True)
        return unique.set_index("image_id").reindex(wanted)

    def estimate(self, name: str) -> Mapping[str, Any] | None:
        """A metric's value, low and high; None where it is not defined."""
        found: Mapping[str, Any] | None = self.measured["metrics"].get(name)
        return found


def read_run(run: Path, *, pictures: bool | None) -> ReportInputs:
    """Reads a run folder; only `predictions/test.csv` must be there.

    Where `pictures` is None, the run's own `report.pictures` says whether lesions may be shown. A
    parent of several folds has no cohort or history of its own: those of its folds are used.

    Raises:
        InputError: no predictions, or a file that cannot be read, by its name.
    """
    file = run / "predictions" / "test.csv"
    if not file.is_file():
        raise InputError(f"{run}: nothing to report (predictions/test.csv is missing)")
    folds = sorted(run.glob("fold_*"), key=lambda folder: (len(folder.name), folder.name))
    first = folds[0] if folds else run
    config = _yaml(run / "config.yaml") or _yaml(first / "config.yaml")
    metrics = read_json(run / "metrics.json")
    positive = metrics.get("positive") or config.get("data", {}).get("positive") or None
    predictions = read_predictions(file, positive=positive, allow_one_class=True)
    return ReportInputs(
        title=run.resolve().name,
        predictions=predictions,
        measured=metrics.get("test") or evaluate(predictions),
        metrics=metrics,
        config=config,
        history=_histories([run, *folds]),
        cohort=_cohort([run, first]),
        audit=read_json(run / "audit.json") or read_json(first / "audit.json"),
        environment=read_json(run / "environment.json") or read_json(first / "environment.json"),
        pictures=config.get("report", {}).get("pictures", True) if pictures is None else pictures,
        explanations={
            name: {**said, "picture": folder / "explanations" / said["picture"]}
            for folder in (run, *folds)
            for name, said in read_json(folder / "explanations" / "mistakes.json").items()
        },
    )


def read_prediction_file(
    file: Path, labels: Path | None, positive: Sequence[str] | None, *, pictures: bool
) -> ReportInputs:
    """Reads any system's prediction file; records come with the labels, or stand in the file.

    Raises:
        InputError: a file that cannot be used, by its name and row.
    """
    predictions = read_predictions(file, labels, positive)
    table = read_table(file)
    threshold = _threshold(table)
    cohort = table if labels is None else read_table(labels)
    known = {name: parse_column(cohort[name], name)[0] for name in CONVERTERS if name in cohort}
    return ReportInputs(
        title=file.name,
        predictions=predictions,
        measured=evaluate(predictions, threshold=threshold),
        metrics={} if threshold is None else {"threshold": {"rule": STATED}},
        cohort=cohort.assign(**known),
        pictures=pictures,
    )


def _threshold(table: pd.DataFrame) -> float | None:
    """What a column `threshold` says, if it says one thing."""
    if "threshold" not in table:
        return None
    values = pd.to_numeric(table["threshold"], errors="coerce").dropna().unique()
    return float(values[0]) if len(values) == 1 else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a JSON object ({error})") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a YAML mapping ({reason})") from error


def _table(path: Path, text: tuple[str, ...]) -> pd.DataFrame | None:
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(text, str)) if path.is_file() else None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from error


def _histories(folders: list[Path]) -> pd.DataFrame | None:
    found = {folder.name: _table(folder / "history.csv", ("name",)) for folder in folders}
    tables = [table.assign(run=name) for name, table in found.items() if table is not None]
    return pd.concat(tables, ignore_index=True) if tables else None


def _cohort(folders: list[Path]) -> pd.DataFrame | None:
    text = ("image_id", "path", "patient_id", "lesion_id", "source", "target", "diagnosis")
    tables = (_table(folder / "cohort.csv", text) for folder in folders)
    return next((table for table in tables if table is not None), None)
