"""Verdict of the report: usefulness, population and prevalence, and natural frequencies."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Shaped

from skinmm.errors import format_count
from skinmm.evaluation.metrics import CLINIC_PREVALENCE
from skinmm.evaluation.predictions import BINARY, DECISIONS, REFER
from skinmm.report.blocks import (
    TEXTS,
    Row,
    Table,
    Verdict,
    format_estimate,
    format_number,
    format_percent,
)
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import describe_people, image_kinds
from skinmm.report.sections.referral import describe_referred

CHANCE: Final = 0.5
COLUMNS: Final = {
    False: {"benign": "Not flagged", "malignant": "Flagged"},
    True: {"benign": "Decided benign", "malignant": "Decided malignant", REFER: "Referred"},
}
"""Has the run decisions with referral -> columns of the natural frequencies."""


def build_verdict(inputs: ReportInputs) -> Verdict:
    """Describe in plain language whether the model was useful in this test, and for whom."""
    texts, rows, threshold = TEXTS["use"], inputs.predictions, inputs.threshold
    malignant, flagged = rows.malignant, rows.malignancy >= threshold
    tested = texts["tested"].format(
        images=image_kinds(inputs),
        people=describe_people(inputs),
        prevalence=format_percent(float(malignant.mean())),
    )
    if malignant.all() or not malignant.any():
        return Verdict(texts["one_kind"], [tested])
    counts = {
        "missed": int((malignant & ~flagged).sum()),
        "malignant": format_count(int(malignant.sum()), "malignant image"),
        "flagged": int((~malignant & flagged).sum()),
        "benign": format_count(int((~malignant).sum()), "benign image"),
        "threshold": format_number(threshold),
    }
    lines = [texts["can"].format(**counts)]
    if share := describe_referred(inputs):
        cleared = int((malignant & (rows.decision == "benign")).sum())
        lines.append(texts["referred"].format(referred=share, cleared=cleared, **counts))
    lines.append(tested)
    if 0 < threshold < 1:
        lines.append(
            texts["weights"].format(format_number((1 - threshold) / threshold, 1), **counts)
        )
    is_ranked = _rate(inputs) not in ("chance", "reversed")
    if is_ranked and (limits := useful_prevalence(inputs)):
        ends = "range_to" if limits[0] <= 0 else "range"
        text = texts[ends if limits[1] < 1 else "range_from"]
        lines[-1] += f" {text.format(*map(format_percent, limits))}"
    if clinic := inputs.measured.get("clinic"):
        gain = clinic["metrics"]["net_benefit_gain"]
        # The interval of a handful of rows is too narrow: the ranking must be shown too.
        is_useful = (gain.get("low") or 0) > 0 and is_ranked
        verdict = "useful" if is_useful else "unproven" if is_ranked else "unranked"
        if _is_useless(gain):
            verdict = "useless"
        prevalence = format_percent(clinic["prevalence"], 2)
        if clinic["prevalence"] == CLINIC_PREVALENCE:
            prevalence += ", as in SIIM-ISIC 2020,"
        lines.append(texts["clinic"][verdict].format(prevalence, format_estimate(gain)))
    lines.append(texts["cannot"])
    return Verdict(texts[_rate(inputs)], lines)


def _rate(inputs: ReportInputs) -> str:
    """Return the key of the verdict from the intervals of AUROC and net benefit."""
    auroc, gain = inputs.estimate("auroc"), inputs.estimate("net_benefit_gain")
    if auroc.get("low") is not None and auroc["low"] <= CHANCE:
        return "reversed" if auroc["high"] < CHANCE else "chance"
    if _is_useless(gain):
        prevalence = inputs.predictions.malignant.mean()
        return "useless" if prevalence > inputs.threshold else "useless_none"
    return "useful" if (gain.get("low") or 0) > 0 else "unproven"


def _is_useless(gain: Mapping[str, Any]) -> bool:
    """Return whether neither a gain in net benefit nor its upper limit is above 0."""
    highest = gain.get("value") if gain.get("high") is None else gain["high"]
    return highest is None or highest <= 0


def useful_prevalence(inputs: ReportInputs) -> tuple[float, float] | None:
    """Return the range of prevalences in which the model beats flagging all and none.

    With sensitivity a, specificity b and threshold odds w, the model exceeds "none" where the odds
    of malignancy exceed w (1 - b) / a, and "all" where they are below w b / (1 - a). None if no
    prevalence is between the two, which is so unless a + b > 1.
    """
    sensitivity, specificity = inputs.value("sensitivity"), inputs.value("specificity")
    threshold = inputs.threshold
    if sensitivity is None or specificity is None or not 0 < threshold < 1:
        return None
    if sensitivity + specificity <= 1:
        return None
    odds = threshold / (1 - threshold)
    low = odds * (1 - specificity) / sensitivity
    high = odds * specificity / (1 - sensitivity) if sensitivity < 1 else np.inf
    return low / (1 + low), high / (1 + high) if np.isfinite(high) else 1.0


def build_frequencies(inputs: ReportInputs) -> Row | None:
    """Build tables of natural frequencies, in this test and in a clinic; None with one class.

    Natural frequencies are understood better than percentages (Hoffrage et al. 2000,
    doi:10.1126/science.290.5500.2261).
    """
    rows, texts = inputs.predictions, TEXTS["frequencies"]
    if rows.malignant.all() or not rows.malignant.any():
        return None
    tables = [_frequency_table(inputs, texts["test"], float(rows.malignant.mean()))]
    if clinic := inputs.measured.get("clinic"):
        tables.append(_frequency_table(inputs, texts["clinic"], float(clinic["prevalence"])))
    return Row(tables)


def _frequency_table(inputs: ReportInputs, caption: str, prevalence: float) -> Table:
    rows = inputs.predictions
    has_referral = rows.decision is not None and REFER in rows.decision
    decisions = rows.decision if has_referral else None
    if decisions is None:
        decisions = np.where(rows.malignancy >= inputs.threshold, DECISIONS[1], DECISIONS[0])
    columns = COLUMNS[has_referral]
    total = next((n for n in (1_000, 10_000, 100_000) if n * prevalence >= 5), 1_000_000)  # noqa: PLR2004 - enough to be divided
    sick = round(total * prevalence)
    sizes = {"malignant": sick, "benign": total - sick}
    counts = {
        kind: split_count(size, decisions[rows.malignant == (kind == BINARY[1])], [*columns])
        for kind, size in sizes.items()
    }
    lines = [
        (kind.capitalize(), *(f"{count:,}" for count in counts[kind]), f"{size:,}")
        for kind, size in sizes.items()
    ]
    sums = (f"{sum(column):,}" for column in zip(*counts.values(), strict=True))
    lines.append(("All", *sums, f"{total:,}"))
    digits = 1 if prevalence >= 0.1 else 2  # noqa: PLR2004 - three digits
    caption = caption.format(total=f"{total:,}", prevalence=format_percent(prevalence, digits))
    return Table(caption, ("", *columns.values(), "All"), lines)


def split_count(total: int, values: Shaped[np.ndarray, " n"], names: list[str]) -> list[int]:
    """Divide a count in proportion to values, by the largest remainders."""
    exact = total * np.array([(values == name).mean() for name in names])
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return [int(count) for count in counts]
