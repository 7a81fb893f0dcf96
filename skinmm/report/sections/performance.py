"""Ranking, the decision at the threshold, calibration and clinical use, drawn from the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.metrics import confusion_matrix

from skinmm.evaluation.predictions import BINARY, find_confident_mistakes
from skinmm.report.blocks import (
    Block,
    Card,
    Gallery,
    Note,
    Plot,
    Row,
    Section,
    Table,
    embedded,
    thumbnail,
)
from skinmm.report.figures import curves, grids
from skinmm.report.figures.curves import (
    Line,
    net_benefit_lines,
    precision_line,
    reliability_line,
    roc_line,
)
from skinmm.report.format import ABSENT, format_number, format_percent, metric_rows
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.facts import call_of

LARGEST_MATRIX: Final = 20
CURVES: Final = 12
RATES: Final = (
    "sensitivity",
    "specificity",
    "referred",
    "ppv",
    "npv",
    "balanced_accuracy",
    "accuracy",
    "f1",
    "number_needed_to_treat",
    "net_benefit",
)
PROBABILITIES: Final = (
    "calibration_slope",
    "calibration_intercept",
    "ece",
    "mean_probability",
    "brier",
    "log_loss",
)


def discrimination(evidence: ReportInputs) -> Section:
    """ROC and precision-recall curves; with several classes each against the rest too."""
    rows = evidence.predictions
    views = [
        view
        for view in [("malignant", rows.malignancy, rows.malignant), *_classes(evidence)]
        if 0 < view[2].sum() < len(rows)
    ]
    if not views:
        note = "No curves: they need both malignant and benign lesions."
        return Section("discrimination", "Ranking", [Note(note)])
    sensitivity, false_alarms, precision = _chosen(evidence)
    share = float(rows.malignant.mean())
    ranks = [roc_line(*view) for view in views]
    precisions = [precision_line(*view) for view in views]
    plots = [
        Plot(
            "ROC curve",
            curves.roc(ranks, (false_alarms, sensitivity)),
            "Dotted: chance. Ring: the chosen threshold. In brackets: the area under the curve.",
        ),
        Plot(
            "Precision-recall curve",
            curves.precision_recall(precisions, share, (sensitivity, precision)),
            f"Dotted: chance, the share of malignant images here ({format_number(share)}).",
        ),
    ]
    blocks: list[Block] = [Row(plots)]
    size = evidence.audit.get("size_auroc")
    if size is not None:
        blocks.append(
            Note(
                f"In this cohort the width and height of the image alone reach AUROC "
                f"{format_number(size)}, which is the camera and not the lesion."
            )
        )
    return Section("discrimination", "Ranking", blocks)


def operating_point(evidence: ReportInputs) -> Section:
    """What happens at the threshold: the confusion matrix and the rates read off it."""
    rows = evidence.predictions
    decided = rows.malignancy >= evidence.threshold
    counts = confusion_matrix(rows.malignant, decided, labels=[False, True])
    caption = f"Called malignant from a probability of {format_number(evidence.threshold)}."
    parts: list[Plot | Table] = [
        Plot("Decision", grids.confusion(counts, BINARY), caption),
        Table(
            "At the threshold",
            ("Measure", "Value (interval)"),
            metric_rows(evidence.measured, RATES),
        ),
    ]
    if 2 < len(rows.classes) <= LARGEST_MATRIX:  # noqa: PLR2004 - two classes are the plot above
        counts = confusion_matrix(
            rows.target, rows.predicted_classes(), labels=range(len(rows.classes))
        )
        caption = f"{call_of(evidence)} Shaded by the share of the row."
        parts.append(Plot("Classes", grids.confusion(counts, rows.classes), caption))
        parts.append(_by_class(evidence))
    return Section("decision", "The decision", [Row(parts)])


def calibration(evidence: ReportInputs) -> Section:
    """Whether a probability of 10 % means one in ten, before and after calibration."""
    rows = evidence.predictions
    title = "Reliability" if rows.raw is None else "After calibration"
    parts: list[Plot | Table] = [
        Plot(
            title,
            curves.reliability(reliability_line("calibrated", rows.malignancy, rows.malignant)),
            "Bins of equal mass. On the dotted line what is predicted is what happens; bars are "
            "95 % Wilson intervals.",
        )
    ]
    if rows.raw is not None:
        raw = rows.raw[:, np.isin(rows.classes, rows.positive)].sum(axis=1)
        drawing = curves.reliability(reliability_line("before calibration", raw, rows.malignant))
        parts.append(Plot("Before calibration", drawing, "Mind the axes: they end with the data."))
    names = ("Measure", "Value (interval)")
    parts.append(Table("In numbers", names, metric_rows(evidence.measured, PROBABILITIES)))
    return Section("calibration", "Calibration", [Row(parts)])


def benefit(evidence: ReportInputs) -> Section | None:
    """The decision curve."""
    rows = evidence.predictions
    if not 0 < rows.malignant.sum() < len(rows):
        return None
    lines = net_benefit_lines(rows.malignancy, rows.malignant)
    plot = Plot(
        "Decision curve",
        curves.decision(lines, evidence.threshold),
        "Net benefit of acting on the model, against treating every lesion as malignant or none, "
        "for each probability from which one would act. Dashed: the chosen threshold.",
    )
    table = Table("Net benefit", ("Threshold", "Model", "Call all malignant"), _at(lines))
    return Section("benefit", "Clinical use", [Row([plot, table])])


def _classes(
    evidence: ReportInputs,
) -> list[tuple[str, Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """Each class against the rest, the most frequent first; none for a binary file."""
    rows = evidence.predictions
    if rows.is_binary:
        return []
    frequent = np.argsort(-np.bincount(rows.target, minlength=len(rows.classes)), kind="stable")
    return [
        (rows.classes[index], rows.probabilities[:, index], rows.target == index)
        for index in frequent[:CURVES].tolist()
    ]


def _chosen(evidence: ReportInputs) -> tuple[float, float, float]:
    """Sensitivity, false positive rate and precision at the threshold; NaN where undefined."""
    rows = evidence.predictions
    flagged = rows.malignancy >= evidence.threshold
    malignant = rows.malignant
    hits = float((flagged & malignant).sum())
    alarms = float(flagged.sum()) - hits
    parts = (malignant.sum(), (~malignant).sum(), flagged.sum())
    return tuple(  # type: ignore[return-value]
        count / whole if whole else float("nan")
        for count, whole in zip((hits, alarms, hits), parts, strict=True)
    )


def _by_class(evidence: ReportInputs) -> Table:
    names = ("auroc", "recall", "precision", "f1")
    support = evidence.measured["support"]
    rows = [
        (f"{label} ({support[label]:,})", *(_plain(evidence, f"{name}_{label}") for name in names))
        for label in evidence.predictions.classes
    ]
    rows.append(
        (
            "macro",
            _plain(evidence, "macro_auroc"),
            _plain(evidence, "class_balanced_accuracy"),
            ABSENT,
            _plain(evidence, "macro_f1"),
        )
    )
    return Table(
        "By class", ("Class (images)", "AUROC", "Recall", "Precision", "F1"), rows, stack=True
    )


def _plain(evidence: ReportInputs, name: str) -> str:
    return format_number((evidence.estimate(name) or {}).get("value"))


def _at(lines: list[Line]) -> list[tuple[str, ...]]:
    """Five thresholds along the decision curve."""
    places = np.linspace(0, len(lines[0].x) - 1, 6).astype(int)[1:]
    return [
        (
            format_percent(float(lines[0].x[place])),
            *(format_number(float(line.y[place]), 4) for line in lines[:2]),
        )
        for place in places
    ]


_CAPTIONS: Final = {"missed": "Malignant, called benign", "flagged": "Benign, flagged"}
_EXPLAINED: Final = (
    " Below a picture where it speaks for malignancy, the more yellow the more; points are what "
    "each input added to the probability, in percent (Shapley values). They show what moved the "
    "network, not where disease is."
)


def mistakes(evidence: ReportInputs) -> Section:
    """Malignant lesions called benign, the least suspected first; benign ones, the most."""
    blocks: list[Block] = []
    for kind, chosen in find_confident_mistakes(evidence.predictions, evidence.threshold).items():
        caption = _CAPTIONS[kind]
        if len(chosen):
            blocks.append(
                Gallery(caption, [_mistake_card(evidence, row) for row in chosen.tolist()])
            )
        else:
            blocks.append(Note(f"{caption}: none."))
    lead = "The mistakes that the model was surest of, at most eight of either kind."
    lead += _EXPLAINED if evidence.explanations else ""
    return Section("mistakes", "Most certain mistakes", blocks, lead)


def _mistake_card(evidence: ReportInputs, row: int) -> Card:
    predictions, records = evidence.predictions, evidence.records
    record = {} if records is None else records.iloc[row].to_dict()
    lines = [f"probability {format_number(float(predictions.malignancy[row]))}"]
    if not predictions.is_binary:
        called = predictions.classes[predictions.predicted_classes()[row]]
        lines.append(f"{predictions.classes[predictions.target[row]]}, called {called}")
        record.pop("diagnosis", None)
    lines += record_lines(record)
    title = str(predictions.image_id[row])
    said = evidence.explanations.get(title, {})
    if said:
        points = (f"{name} {100 * added:+.1f}" for name, added in said["added"].items())
        lines.append(f"points: {', '.join(points)}")
    if not evidence.pictures:
        return Card(title, lines)
    heat = embedded(Path(said["picture"])) if said else None
    return Card(title, lines, thumbnail(record.get("path")), heat)


def record_lines(record: Mapping[Any, Any]) -> list[str]:
    """Age, sex and site of a canonical row, and its diagnosis; missing ones are left out."""
    known = {name: value for name, value in record.items() if not pd.isna(value)}
    age = [f"{known['age']:.0f} years"] if "age" in known else []
    person = ", ".join([*age, *(str(known[name]) for name in ("sex", "site") if name in known)])
    diagnosis = [f"diagnosis {known['diagnosis']}"] if "diagnosis" in known else []
    return [line for line in (person or "no record", *diagnosis) if line]
