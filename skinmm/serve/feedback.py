"""`skinmm feedback`: performance since deployment, and shifts of inputs and predictions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config.commands import FeedbackConfig
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.drift import ColumnShift, compare_columns
from skinmm.evaluation.predictions import DECISIONS
from skinmm.predict.ensemble import find_checkpoints
from skinmm.report.blocks import Block, Note, Section, Table
from skinmm.report.format import (
    ABSENT,
    format_count,
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

FILES: Final = ("feedback.html", "feedback.json", "cases.csv", "verdicts.csv")
_METRICS: Final = (
    *("auroc", "sensitivity", "specificity", "ppv", "npv"),
    *("calibration_slope", "calibration_intercept", "ece", "brier"),
)
_SECTIONS: Final = ["discrimination", "decision", "calibration", "referral", "subgroups", "metrics"]
_ONE_CLASS: Final = (
    "Performance cannot be evaluated yet: confirmed diagnoses of malignant and of benign lesions "
    "are needed."
)
_SELECTED: Final = (
    "Only lesions with a confirmed diagnosis are evaluated. If they were selected by the "
    "prediction, for example because only suspicious lesions are excised, sensitivity appears too "
    "high and specificity too low."
)


@dataclass(frozen=True)
class Deployment:
    """Cases of a model since deployment.

    Attributes:
        card: model card.
        cases: all cases in the columns of a prediction file.
        shifts: shifts of inputs and predictions.
        evidence: cases with a confirmed diagnosis; None if all of them are malignant or benign.
    """

    card: Mapping[str, Any]
    cases: pd.DataFrame
    shifts: Sequence[ColumnShift]
    evidence: ReportInputs | None

    @property
    def confirmed(self) -> pd.DataFrame:
        """Cases with a confirmed diagnosis."""
        return self.cases[self.cases["target"].notna()]


def feedback(config: FeedbackConfig) -> Path:
    """Write the page, its numbers, all cases and those with a confirmed diagnosis.

    Returns:
        The page.

    Raises:
        InputError: no store, no case of the model, or an output exists.
    """
    folder = Path(config.output)
    page, facts, cases, verdicts = files = [folder / name for name in FILES]
    for file in files:
        require_new_output("output", file, overwrite=config.overwrite)
    if not config.store:
        raise InputError("store= is empty: give the store= of skinmm serve")
    store = Store.open(config.store, create=False)
    name = hide_password(config.store)
    try:
        model, card = _select_model(store.models(), config)
        table = store.to_table("skinmm feedback", model)
    except StoreError as error:
        raise InputError(f"store={name}: {error}") from error
    finally:
        store.close()
    if table.empty:
        raise InputError(f"store={name}: no cases of model {model[:12]} yet")
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(cases, index=False, float_format="%.9g")
    confirmed = table[table["target"].notna()]
    confirmed.to_csv(verdicts, index=False, float_format="%.9g")
    has_both = confirmed["target"].isin(card["positive"]).nunique() > 1
    evidence = (
        read_prediction_file(verdicts, None, card["positive"], pictures=False) if has_both else None
    )
    deployment = Deployment(card, table, compare_columns(card["inputs"], table), evidence)
    write_json(facts, {"model": model, **_to_facts(deployment)})
    return _write_page(deployment, page)


def _select_model(
    models: Mapping[str, dict[str, Any]], config: FeedbackConfig
) -> tuple[str, dict[str, Any]]:
    """Return the configured model, or the latest one, and its card."""
    if not models:
        raise InputError(f"store={hide_password(config.store)}: no model was served with it yet")
    if not config.checkpoint:
        return list(models.items())[-1]
    files = find_checkpoints(config.checkpoint)
    model = ",".join(sha256(path.read_bytes()).hexdigest() for path in files)
    if model not in models:
        raise InputError(
            f"checkpoint={config.checkpoint} was never served with this store; SHA-256 of the "
            f"models in it: {', '.join(name[:12] for name in models)}"
        )
    return model, models[model]


def _to_facts(deployment: Deployment) -> dict[str, Any]:
    evidence = deployment.evidence
    return {
        "cases": len(deployment.cases),
        "verdicts": len(deployment.confirmed),
        "months": _count_months(deployment),
        "measured": None if evidence is None else dict(evidence.measured),
        "shifts": [
            {**asdict(shift), "before": shift.before.tolist(), "now": shift.now.tolist()}
            for shift in deployment.shifts
        ],
    }


def _count_months(deployment: Deployment) -> list[dict[Hashable, Any]]:
    """Return cases, diagnoses, and expected and confirmed malignant lesions of each month."""
    rows = deployment.cases.assign(month=deployment.cases["at"].str[:7])
    rows["confirmed"] = rows["target"].notna()
    rows["expected"] = rows["malignancy"].where(rows["confirmed"])
    rows["found"] = rows["target"].isin(deployment.card["positive"])
    months = rows.groupby("month").agg(
        cases=("at", "size"),
        verdicts=("confirmed", "sum"),
        expected=("expected", "sum"),
        found=("found", "sum"),
    )
    return months.reset_index().to_dict("records")


def _write_page(deployment: Deployment, output: Path) -> Path:
    first, last = deployment.cases["at"].min()[:10], deployment.cases["at"].max()[:10]
    facts = [
        format_count(len(deployment.cases), "case"),
        f"{len(deployment.confirmed):,} with a confirmed diagnosis",
        f"{first} to {last}",
    ]
    sections = [_performance_section(deployment), _inputs_section(deployment)]
    if deployment.evidence is not None:
        chapters = (SECTIONS[name](deployment.evidence) for name in _SECTIONS)
        sections += [section for section in chapters if section is not None]
    return write_page(output, title="Performance in use", facts=facts, sections=sections)


def _performance_section(deployment: Deployment) -> Section:
    """Compare performance in use with the test."""
    blocks: list[Block] = [Note(_SELECTED, warning=True)]
    evidence = deployment.evidence
    if evidence is None:
        blocks.append(Note(_ONE_CLASS))
    else:
        members = deployment.card["members"]
        tested = members[0]["test"].get("metrics", {}) if len(members) == 1 else {}
        rows = [
            (
                metric_label(name),
                format_estimate(tested.get(name)),
                format_estimate(evidence.estimate(name)),
            )
            for name in _METRICS
        ]
        blocks.append(Table("Test and use", ("", "In its test", "In use"), rows))
    decisions = [
        (name, f"{len(part):,}", f"{part['target'].notna().sum():,}")
        for name in DECISIONS
        if len(part := deployment.cases[deployment.cases["decision"] == name])
    ]
    months = [
        (
            *(str(month[name]) for name in ("month", "cases", "verdicts")),
            format_number(month["expected"], 1),
            str(month["found"]),
        )
        for month in _count_months(deployment)
    ]
    header = ("Month", "Cases", "Diagnoses", "Malignant: expected", "confirmed")
    blocks += [
        Table("Confirmed diagnoses by decision", ("Decision", "Cases", "Diagnoses"), decisions),
        Table("By month", header, months),
    ]
    return Section("since", "Test and use", blocks)


def _inputs_section(deployment: Deployment) -> Section:
    """Compare inputs and predictions with training and test."""
    blocks: list[Block] = []
    if not deployment.shifts:
        blocks.append(Note("This checkpoint does not contain the distribution of its inputs."))
    rows = [
        (shift.column, format_number(shift.index), _format_p(shift.p))
        for shift in deployment.shifts
    ]
    if rows:
        blocks.append(Table("Shift of each column", ("Column", "Stability index", "p"), rows))
    for shift in deployment.shifts:
        before, now = max(shift.before.sum(), 1), shift.now.sum()
        shares = [
            (label, format_percent(rows_before / before), format_percent(rows_now / now))
            for label, rows_before, rows_now in zip(
                shift.labels, shift.before, shift.now, strict=True
            )
        ]
        blocks.append(Table(shift.column, ("", "Before", "In use"), shares))
    lead = (
        "Records are compared with training, malignancy and ood (out-of-distribution score) with "
        "the test. Index: below 0.1 is usually called stable, above 0.25 a shift. p: chi-squared "
        "test that treats each case as a different patient."
    )
    return Section("inputs", "Inputs and predictions", blocks, lead)


def _format_p(p: float | None) -> str:
    return ABSENT if p is None else "below 0.001" if p < 0.001 else format_number(p)  # noqa: PLR2004
