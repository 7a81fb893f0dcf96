"""Sections on the curves, the decision and the most confident mistakes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from skinmm.evaluation.comparison import MEAN_COST, RULE_METRICS, compare_rules
from skinmm.evaluation.predictions import BINARY, find_confident_mistakes
from skinmm.evaluation.smooth_calibration import fit_calibration_band
from skinmm.report.blocks import (
    TEXTS,
    Block,
    Card,
    Fold,
    Gallery,
    Note,
    Plot,
    Row,
    Section,
    Table,
    format_estimate,
    format_estimates,
    format_number,
    format_percent,
    metric_label,
    metric_table,
    thumbnail,
    to_data_url,
)
from skinmm.report.figures import curves
from skinmm.report.figures.grids import draw_confusion
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import resampling_unit
from skinmm.report.sections.facts import describe_call_rule

RATES: Final = (
    *("sensitivity", "specificity", "referred", "ppv", "npv"),
    *("balanced_accuracy", "accuracy", "f1", "number_needed_to_treat", "net_benefit"),
    "net_benefit_gain",
)
PER_PATIENT: Final = ("patient_sensitivity", "top_15_sensitivity")
PROBABILITIES: Final = (
    *("calibration_slope", "calibration_intercept", "ece", "ici", "e90"),
    *("mean_probability", "brier", "log_loss"),
)


def build_curves(inputs: ReportInputs) -> Section:
    """Build the curves of ranking, calibration and net benefit; fold their numbers."""
    blocks: list[Block] = []
    calibration, numbers = _build_calibration(inputs)
    plots = [*_ranking_plots(inputs), calibration]
    folds = [Fold("Calibration in numbers", numbers)]
    if benefit := _build_benefit(inputs):
        plots.append(benefit[0])
        folds.append(Fold("Net benefit in numbers", [benefit[1]]))
    else:
        blocks.append(Note("Curves of ranking need both malignant and benign lesions."))
    blocks.append(Row(plots))
    if (size := inputs.audit.get("size_auroc")) is not None:
        blocks.append(Note(TEXTS["size_auroc"].format(format_number(size))))
    if (source := inputs.audit.get("source_auroc")) is not None:
        blocks.append(Note(TEXTS["source_auroc"].format(format_number(source))))
    if inputs.value("within_source_auroc") is not None:
        pair = (format_estimate(inputs.estimate(f"{p}auroc")) for p in ("within_source_", ""))
        blocks.append(Note(TEXTS["within_source"].format(*pair)))
    return Section("curves", "Curves", [*blocks, *folds])


def _ranking_plots(inputs: ReportInputs) -> list[Plot]:
    """Return ROC and precision-recall curves, also of each class against the rest."""
    rows = inputs.predictions
    views = [("malignant", rows.malignancy, rows.malignant)]
    if not rows.is_binary:
        counts = np.bincount(rows.target, minlength=len(rows.classes))
        views += [
            (rows.classes[index], rows.probabilities[:, index], rows.target == index)
            for index in np.argsort(-counts, kind="stable")[:12].tolist()
        ]
    views = [view for view in views if 0 < view[2].sum() < len(rows)]
    if not views:
        return []
    flagged, malignant = rows.malignancy >= inputs.threshold, rows.malignant
    with np.errstate(invalid="ignore"):  # undefined shares are NaN
        sensitivity, precision = (flagged & malignant).sum() / (malignant.sum(), flagged.sum())
        false_positive_rate = (flagged & ~malignant).sum() / (~malignant).sum()
    prevalence = float(malignant.mean())
    rocs = [curves.roc_line(*view) for view in views]
    precisions = [curves.precision_line(*view) for view in views]
    roc = curves.draw_ranking(rocs, (false_positive_rate, sensitivity))
    precision_recall = curves.draw_ranking(precisions, (sensitivity, precision), prevalence)
    caption = TEXTS["precision_recall"].format(format_number(prevalence))
    return [
        Plot("ROC curve", roc, TEXTS["roc"]),
        Plot("Precision-recall curve", precision_recall, caption),
    ]


def build_decision(inputs: ReportInputs) -> Section:
    """Build confusion matrices and rates at the threshold."""
    rows = inputs.predictions
    flagged = rows.malignancy >= inputs.threshold
    counts = confusion_matrix(rows.malignant, flagged, labels=[False, True])
    caption = f"Flagged as malignant from a probability of {format_number(inputs.threshold)}."
    parts: list[Plot | Table] = [
        Plot("Decision", draw_confusion(counts, BINARY), caption),
        metric_table("At the threshold", inputs.measured, RATES),
    ]
    by_patient = metric_table("By patient", inputs.measured, PER_PATIENT)
    parts += [by_patient] if by_patient.rows else []
    if len(rows.classes) in range(3, 21):  # a larger matrix is illegible
        labels = range(len(rows.classes))
        counts = confusion_matrix(rows.target, rows.predicted_classes(), labels=labels)
        caption = f"{describe_call_rule(inputs)} Shaded by the share of the row."
        parts.append(Plot("Classes", draw_confusion(counts, rows.classes), caption))
        parts.append(_class_table(inputs))
    if not rows.is_binary:
        parts.append(_rule_table(inputs))
    return Section("decision", "The decision", [Row(parts)], is_folded=rows.is_binary)


def _build_calibration(inputs: ReportInputs) -> tuple[Plot, list[Block]]:
    rows = inputs.predictions
    title = "Calibration" if rows.raw is None else "After calibration"
    plot = _calibration_plot(inputs, "calibrated", rows.malignancy)
    caption = TEXTS["reliability"].format(100 * inputs.confidence, resampling_unit(inputs))
    parts: list[Plot | Table] = [metric_table("", inputs.measured, PROBABILITIES)]
    if rows.raw is not None:
        raw = rows.raw[:, np.isin(rows.classes, rows.positive)].sum(axis=1)
        note = "Note: the axes are cut to the range of the data."
        before = _calibration_plot(inputs, "before calibration", raw)
        parts.append(Plot("Before calibration", before, note))
    blocks: list[Block] = [Row(parts)]
    if noise := inputs.measured.get("calibration_noise"):
        numbers = {name: format_number(value) for name, value in noise.items()}
        blocks.append(Note(TEXTS["calibration_noise"].format_map(numbers)))
    return Plot(title, plot, caption), blocks


def _calibration_plot(
    inputs: ReportInputs, name: str, probabilities: Float64[np.ndarray, " n"]
) -> Markup:
    rows = inputs.predictions
    truth = rows.malignant, rows.patient_id
    band = fit_calibration_band(probabilities, *truth, confidence=inputs.confidence)
    smooth = curves.Line(name, band.x, band.y, band.low, band.high)
    return curves.draw_reliability(
        curves.reliability_line(name, probabilities, rows.malignant), smooth
    )


def _build_benefit(inputs: ReportInputs) -> tuple[Plot, Table] | None:
    """Return the decision curve with a table of net benefits; None with one class."""
    rows = inputs.predictions
    if not 0 < rows.malignant.sum() < len(rows):
        return None
    lines = curves.net_benefit_lines(rows.malignancy, rows.malignant)
    low, high = curves.net_benefit_band(
        rows.malignancy, rows.malignant, rows.patient_id, lines[0].x, inputs.confidence
    )
    lines[0] = replace(lines[0], low=low, high=high)
    figure = curves.draw_decision(lines, inputs.threshold)
    plot = Plot("Decision curve", figure, TEXTS["decision_curve"].format(resampling_unit(inputs)))
    cells = []
    for point in np.linspace(0, len(lines[0].x) - 1, 6).astype(int)[1:]:
        benefits = (format_number(float(line.y[point]), 4) for line in lines[:2])
        cells.append((format_percent(float(lines[0].x[point])), *benefits))
    return plot, Table("", ("Threshold", "Model", "Flag every lesion"), cells)


def build_mistakes(inputs: ReportInputs) -> Section:
    """Build the gallery of malignant lesions rated lowest; fold the benign ones rated highest."""
    blocks: list[Block] = []
    for kind, rows in find_confident_mistakes(inputs.predictions, inputs.threshold).items():
        cards = [_mistake_card(inputs, row) for row in rows.tolist()]
        caption = TEXTS[kind]
        block = Gallery(caption, cards) if cards else Note(f"{caption}: none.")
        blocks.append(block if kind == "missed" else Fold(caption, [block]))
    lead = TEXTS["mistakes"] + (f" {TEXTS['explanation']}" if inputs.explanations else "")
    if any("average" in explanation for explanation in inputs.explanations.values()):
        lead += f" {TEXTS['average']}"
    return Section("mistakes", "What was missed", blocks, lead)


def _mistake_card(inputs: ReportInputs, row: int) -> Card:
    predictions, records = inputs.predictions, inputs.records
    record = {} if records is None else records.iloc[row].to_dict()
    lines = [f"probability {format_number(float(predictions.malignancy[row]))}"]
    if predictions.decision is not None:
        lines.append(TEXTS["decisions"][predictions.decision[row]])
    if not predictions.is_binary:
        called = predictions.classes[predictions.predicted_classes()[row]]
        lines.append(f"{predictions.classes[predictions.target[row]]}, classified as {called}")
        record.pop("diagnosis", None)
    lines += describe_record(record)
    title = str(predictions.image_id[row])
    explanation = inputs.explanations.get(title)
    if explanation:
        points = [f"{name} {100 * added:+.1f}" for name, added in explanation["added"].items()]
        if "average" in explanation:
            points.insert(0, f"average lesion {100 * explanation['average']:.1f}")
        lines.append(f"points: {', '.join(points)}")
    if not inputs.pictures:
        return Card(title, lines)
    heat_map = None
    if explanation and explanation["picture"].is_file():
        heat_map = to_data_url(explanation["picture"].read_bytes())
    paths = [record.get("path")]
    if isinstance(record.get("paths"), str):  # all images of a lesion
        paths = record["paths"].split("|")
        views = record["image_views"]
        views = views.split("|") if isinstance(views, str) else [""]
        pairs = zip(str(record["images"]).split("|"), views, strict=True)
        lines += [f"{name} ({view})" if view else name for name, view in pairs]
    return Card(title, lines, thumbnail(*paths), heat_map)


def describe_record(record: Mapping[Any, Any]) -> list[str]:
    """Return age, sex, site and diagnosis of a canonical row; missing values are left out."""
    values = {name: value for name, value in record.items() if not pd.isna(value)}
    age = [f"{values['age']:.0f} years"] if "age" in values else []
    person = ", ".join([*age, *(str(values[name]) for name in ("sex", "site") if name in values)])
    diagnosis = [f"diagnosis {values['diagnosis']}"] if "diagnosis" in values else []
    return [person or "no record", *diagnosis]


def _rule_table(inputs: ReportInputs) -> Table:
    """Return all decision rules, each cross-fitted to the reported rows."""
    rows, options = inputs.predictions, inputs.evaluation
    costs = inputs.costs or options.get("costs")
    metrics = (*RULE_METRICS, MEAN_COST) if costs else RULE_METRICS
    rules = compare_rules(
        rows,
        costs=costs,
        resamples=options.get("resamples", 1000),
        confidence=inputs.confidence,
    )
    if "stated" in rules:
        rules["stated"] |= {n: m for n, m in inputs.measured["metrics"].items() if n in metrics}
    labels = TEXTS["rules"]
    cells = [(labels[name], *format_estimates(entries, metrics)) for name, entries in rules.items()]
    header = ("Predicted class", *map(metric_label, metrics))
    return Table(f"Decision rules. {TEXTS['rules_caption']}", header, cells, stack=True)


def _class_table(inputs: ReportInputs) -> Table:
    support = inputs.measured["support"]
    metrics = ("auroc", "recall", "precision", "f1")
    names = {
        f"{label} ({support[label]:,})": [f"{metric}_{label}" for metric in metrics]
        for label in inputs.predictions.classes
    } | {"macro": ["macro_auroc", "class_balanced_accuracy", "", "macro_f1"]}
    rows = [(row, *map(format_number, map(inputs.value, names[row]))) for row in names]
    header = ("Class (images)", "AUROC", "Recall", "Precision", "F1")
    return Table("By class", header, rows, stack=True)
