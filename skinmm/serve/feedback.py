"""`skinmm feedback`: how a model does since it is in use, and how its cases have shifted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config import FeedbackConfig
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.drift import ColumnShift, compare_columns
from skinmm.evaluation.predictions import DECISIONS
from skinmm.predict.job import find_checkpoints
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
from skinmm.serve.store import Store, StoreError, shown
from skinmm.training.run_folder import write_json

FILES: Final = ("feedback.html", "feedback.json", "cases.csv", "verdicts.csv")
COMPARED: Final = (
    *("auroc", "sensitivity", "specificity", "ppv", "npv"),
    *("calibration_slope", "calibration_intercept", "ece", "brier"),
)
CHAPTERS: Final = (
    *("discrimination", "decision", "calibration", "referral", "subgroups", "metrics"),
)
_LEAST: Final = 0.001
ONE_SIDED: Final = (
    "Performance cannot be judged yet: that needs verdicts on malignant and on benign lesions."
)
VERIFIED: Final = (
    "Only lesions with a verdict are judged. Where those are chosen by what the model said, as "
    "when only suspicious ones are cut out, sensitivity looks too high and specificity too low."
)


@dataclass(frozen=True)
class Use:
    """A model since it is in use.

    Attributes:
        card: what the service told of it.
        cases: all of them, as a prediction file.
        shifts: of what is shown to it, and of its answers.
        evidence: of the cases with a verdict; None where those are all malignant or all benign.
    """

    card: Mapping[str, Any]
    cases: pd.DataFrame
    shifts: Sequence[ColumnShift]
    evidence: ReportInputs | None

    @property
    def judged(self) -> pd.DataFrame:
        """Cases with a verdict."""
        return self.cases[self.cases["target"].notna()]


def feedback(config: FeedbackConfig) -> Path:
    """Writes the page, its numbers, the cases and those with a verdict.

    Returns:
        The page.

    Raises:
        InputError: no store, no case of that model, or files in the way.
    """
    folder = Path(config.output)
    page, facts, cases, verdicts = (folder / name for name in FILES)
    for file in (page, facts, cases, verdicts):
        require_new_output("output", file, overwrite=config.overwrite)
    if not config.store:
        raise InputError("store=: name the case store, as skinmm serve was given it")
    store = Store.open(config.store, create=False)
    try:
        model, card = _model(store.models(), config)
        table = store.table("skinmm feedback", model)
    except StoreError as error:
        raise InputError(f"store={shown(config.store)}: {error}") from error
    finally:
        store.close()
    if table.empty:
        raise InputError(f"store={shown(config.store)}: no case of model {model[:12]} yet")
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(cases, index=False, float_format="%.9g")
    judged = table[table["target"].notna()]
    judged.to_csv(verdicts, index=False, float_format="%.9g")
    both = judged["target"].isin(card["positive"]).nunique() > 1
    evidence = (
        read_prediction_file(verdicts, None, card["positive"], pictures=False) if both else None
    )
    use = Use(card, table, compare_columns(card["inputs"], table), evidence)
    write_json(facts, {"model": model, **_facts(use)})
    return _page(use, page)


def _model(
    models: Mapping[str, dict[str, Any]], config: FeedbackConfig
) -> tuple[str, dict[str, Any]]:
    """Whose cases are looked at, and its card."""
    if not models:
        raise InputError(f"store={shown(config.store)}: no model was served with it yet")
    if not config.checkpoint:
        return list(models.items())[-1]
    files = find_checkpoints(config.checkpoint)
    model = ",".join(sha256(path.read_bytes()).hexdigest() for path in files)
    if model not in models:
        raise InputError(
            f"checkpoint={config.checkpoint} was never served with this store; it knows "
            f"{', '.join(name[:12] for name in models)} (first signs of SHA-256)"
        )
    return model, models[model]


def _facts(use: Use) -> dict[str, Any]:
    shifts = [{**asdict(each), "before": each.before.tolist()} for each in use.shifts]
    return {
        "cases": len(use.cases),
        "verdicts": len(use.judged),
        "months": _months(use),
        "measured": None if use.evidence is None else dict(use.evidence.measured),
        "shifts": [{**each, "now": each["now"].tolist()} for each in shifts],
    }


def _months(use: Use) -> list[dict[str, Any]]:
    """Month by month: cases, verdicts, and malignant ones as expected of these and as found."""
    rows = use.cases.assign(month=use.cases["at"].str[:7])
    rows["malignant"] = rows["target"].isin(use.card["positive"])
    found = []
    for month, part in rows.groupby("month"):
        judged = part[part["target"].notna()]
        counts = {"cases": len(part), "verdicts": len(judged)}
        expected = {"expected": float(judged["malignancy"].sum())}
        found.append(
            {"month": month, **counts, **expected, "found": int(judged["malignant"].sum())}
        )
    return found


def _page(use: Use, output: Path) -> Path:
    first, last = use.cases["at"].min()[:10], use.cases["at"].max()[:10]
    facts = [
        format_count(len(use.cases), "case"),
        format_count(len(use.judged), "verdict"),
        f"{first} to {last}",
    ]
    sections = [_since(use), _inputs(use)]
    if use.evidence is not None:
        made = (SECTIONS[name](use.evidence) for name in CHAPTERS)
        sections += [section for section in made if section is not None]
    return write_page(output, title="Since it is in use", facts=facts, sections=sections)


def _since(use: Use) -> Section:
    """Performance beside that of the test."""
    blocks: list[Block] = [Note(VERIFIED, loud=True)]
    if use.evidence is None:
        blocks.append(Note(ONE_SIDED))
    else:
        members = use.card["members"]
        tested = members[0]["test"].get("metrics", {}) if len(members) == 1 else {}
        rows = [
            (
                metric_label(name),
                format_estimate(tested.get(name)),
                format_estimate(use.evidence.estimate(name)),
            )
            for name in COMPARED
        ]
        blocks.append(Table("Then and now", ("", "In its test", "Since it is in use"), rows))
    decided = [
        (name, f"{len(part):,}", f"{part['target'].notna().sum():,}")
        for name in DECISIONS
        if len(part := use.cases[use.cases["decision"] == name])
    ]
    months = [
        (
            *(str(each[name]) for name in ("month", "cases", "verdicts")),
            format_number(each["expected"], 1),
            str(each["found"]),
        )
        for each in _months(use)
    ]
    header = ("Month", "Cases", "Verdicts", "Malignant: expected", "found")
    blocks += [
        Table("Who got a verdict", ("Decision", "Cases", "Verdicts"), decided),
        Table("Month by month", header, months),
    ]
    return Section("since", "Then and now", blocks)


def _chance(p: float) -> str:
    return "below 0.001" if p < _LEAST else format_number(p)


def _inputs(use: Use) -> Section:
    """What it is shown, and what it answers, beside training and test."""
    blocks: list[Block] = []
    if not use.shifts:
        blocks.append(Note("This checkpoint does not know how its training data were distributed."))
    rows = [
        (each.column, format_number(each.index), ABSENT if each.p is None else _chance(each.p))
        for each in use.shifts
    ]
    if rows:
        blocks.append(Table("Shift of each column", ("Column", "Stability index", "p"), rows))
    for each in use.shifts:
        shares = [
            (
                label,
                format_percent(before / max(each.before.sum(), 1)),
                format_percent(now / each.now.sum()),
            )
            for label, before, now in zip(each.labels, each.before, each.now, strict=True)
        ]
        blocks.append(Table(each.column, ("", "Then", "Now"), shares))
    lead = (
        "Records beside those of training; malignancy and ood (unfamiliarity) beside those of the "
        "test. Index: below 0.1 is usually called stable, above 0.25 a shift. p: chi-squared, as "
        "if each case were another patient."
    )
    return Section("inputs", "What it is shown", blocks, lead)
