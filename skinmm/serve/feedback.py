"""`skinmm feedback`: performance since deployment, and shifts of inputs and predictions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config.checkpoints import find_checkpoints
from skinmm.config.commands import FeedbackConfig
from skinmm.errors import InputError, format_count, require_new_output
from skinmm.evaluation.drift import ColumnShift, compare_columns
from skinmm.evaluation.predictions import DECISIONS
from skinmm.report.blocks import (
    Block,
    Note,
    Section,
    Table,
    format_estimate,
    format_number,
    format_percent,
    metric_label,
)
from skinmm.report.inputs import ReportInputs, read_prediction_file
from skinmm.report.sections import SECTIONS
from skinmm.report.write import write_page
from skinmm.serve.store import Store, StoreError, hide_password
from skinmm.training.run_folder import write_json

_METRICS: Final = (
    *("auroc", "sensitivity", "specificity", "ppv", "npv"),
    *("calibration_slope", "calibration_intercept", "ece", "brier"),
)
_SECTIONS: Final = ["curves", "subgroups", "decision", "referral", "metrics"]
_SELECTED: Final = (
    "Only lesions with a confirmed diagnosis are evaluated. If they were selected by the "
    "prediction, for example because only suspicious lesions are excised, sensitivity appears too "
    "high and specificity too low."
)


def feedback(config: FeedbackConfig) -> Path:
    """Write the feedback page, its numbers as JSON and the cases as tables; return the page."""
    folder = Path(config.output)
    names = ("feedback.html", "feedback.json", "cases.csv", "verdicts.csv")
    page, facts_file, cases_file, verdicts_file = files = [folder / name for name in names]
    for file in files:
        require_new_output("output", file, overwrite=config.overwrite)
    model, card, cases = _load_cases(config)
    folder.mkdir(parents=True, exist_ok=True)
    cases.to_csv(cases_file, index=False, float_format="%.9g")
    confirmed = cases[cases["target"].notna()]
    confirmed.to_csv(verdicts_file, index=False, float_format="%.9g")
    positive = card["positive"]
    inputs = None
    if confirmed["target"].isin(positive).nunique() > 1:
        inputs = read_prediction_file(verdicts_file, None, positive, pictures=False)
    shifts = compare_columns(card["inputs"], cases)
    months = _count_months(cases, positive)
    facts = {
        "model": model,
        "cases": len(cases),
        "verdicts": len(confirmed),
        "months": months,
        "measured": None if inputs is None else dict(inputs.measured),
        "shifts": [
            {**asdict(shift), "before": shift.before.tolist(), "now": shift.now.tolist()}
            for shift in shifts
        ],
    }
    write_json(facts_file, facts)
    headline = [
        format_count(len(cases), "case"),
        f"{len(confirmed):,} with a confirmed diagnosis",
        f"{cases['at'].min()[:10]} to {cases['at'].max()[:10]}",
    ]
    sections = [_build_performance_section(card, cases, months, inputs), _build_shifts(shifts)]
    if inputs is not None:
        chapters = (SECTIONS[name](inputs) for name in _SECTIONS)
        sections += [section for section in chapters if section is not None]
    return write_page(page, title="Performance in use", facts=headline, sections=sections)


def _load_cases(config: FeedbackConfig) -> tuple[str, dict[str, Any], pd.DataFrame]:
    """Return the configured model, or the latest one, its card and its cases."""
    if not config.store:
        raise InputError("store= is missing: give the same location as in skinmm serve")
    store = Store.open(config.store, create=False)
    name = hide_password(config.store)
    try:
        models = store.models()
        if not models:
            raise InputError(f"store={name}: no model has been served with this store yet")
        model = [*models][-1]
        if config.checkpoint:
            files = find_checkpoints(config.checkpoint)
            model = ",".join(sha256(path.read_bytes()).hexdigest() for path in files)
        if model not in models:
            raise InputError(
                f"checkpoint={config.checkpoint} was never served with this store, whose models "
                f"have the SHA-256 {', '.join(model[:12] for model in models)}"
            )
        cases = store.to_table("skinmm feedback", model)
    except StoreError as error:
        raise InputError(f"store={name}: {error}") from error
    finally:
        store.close()
    if cases.empty:
        raise InputError(f"store={name}: no cases of model {model[:12]} yet")
    return model, models[model], cases


def _count_months(cases: pd.DataFrame, positive: Sequence[str]) -> list[dict[Hashable, Any]]:
    """Count the cases, diagnoses, and expected and confirmed malignant lesions of each month."""
    confirmed = cases["target"].notna()
    counts = {
        "cases": 1,
        "verdicts": confirmed,
        "expected": cases["malignancy"].where(confirmed),
        "found": cases["target"].isin(positive),
    }
    months = pd.DataFrame(counts).groupby(cases["at"].str[:7].rename("month")).sum()
    return months.reset_index().to_dict("records")


def _build_performance_section(
    card: Mapping[str, Any],
    cases: pd.DataFrame,
    months: Sequence[Mapping[Hashable, Any]],
    inputs: ReportInputs | None,
) -> Section:
    """Compare the performance in use with the performance in the test."""
    blocks: list[Block] = [Note(_SELECTED, warning=True)]
    if inputs is None:
        blocks.append(
            Note(
                "Performance cannot be evaluated yet: confirmed diagnoses of malignant and of "
                "benign lesions are needed."
            )
        )
    else:
        members = card["members"]
        tested = members[0]["test"].get("metrics", {}) if len(members) == 1 else {}
        rows = [
            (metric_label(name), *map(format_estimate, (tested.get(name), inputs.estimate(name))))
            for name in _METRICS
        ]
        blocks.append(Table("Test and use", ("", "In the test", "In use"), rows))
    decisions = [
        (name, f"{len(part):,}", f"{part['target'].notna().sum():,}")
        for name in DECISIONS
        if len(part := cases[cases["decision"] == name])
    ]
    monthly = [
        (
            *(str(month[name]) for name in ("month", "cases", "verdicts")),
            format_number(month["expected"], 1),
            str(month["found"]),
        )
        for month in months
    ]
    header = ("Month", "Cases", "Diagnoses", "Malignant: expected", "confirmed")
    blocks += [
        Table("Confirmed diagnoses by decision", ("Decision", "Cases", "Diagnoses"), decisions),
        Table("By month", header, monthly),
    ]
    return Section("since", "Test and use", blocks)


def _build_shifts(shifts: Sequence[ColumnShift]) -> Section:
    """Compare records in use with training rows, and predictions in use with test rows."""
    blocks: list[Block] = []
    rows = []
    for shift in shifts:
        before, now = max(shift.before.sum(), 1), shift.now.sum()
        shares = [
            (label, format_percent(rows_before / before), format_percent(rows_now / now))
            for label, rows_before, rows_now in zip(
                shift.labels, shift.before, shift.now, strict=True
            )
        ]
        blocks.append(Table(shift.column, ("", "Before", "In use"), shares))
        is_small = shift.p is not None and shift.p < 0.001  # noqa: PLR2004
        p = "below 0.001" if is_small else format_number(shift.p)
        p = "too few cases for a test" if shift.p is None else p
        rows.append((shift.column, format_number(shift.index), p))
    overview = (
        Table("Shift of each column", ("Column", "Stability index", "p"), rows)
        if rows
        else Note("This checkpoint does not contain the distribution of its inputs.")
    )
    lead = (
        "Records are compared with training, malignancy and ood (out-of-distribution score) with "
        "the test. Index: below 0.1 is usually called stable, above 0.25 a shift. p: chi-squared "
        "test that treats each case as a different patient; values "
        "with fewer than 5 expected cases are pooled."
    )
    return Section("inputs", "Inputs and predictions", [overview, *blocks], lead)
