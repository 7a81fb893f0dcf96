"""Headline section: verdict, natural frequencies, warnings and main numbers."""

from collections.abc import Mapping
from typing import Any, Final

from skinmm.errors import format_count
from skinmm.evaluation.planning import malignant_for_auroc, malignant_for_guarantee
from skinmm.report.blocks import (
    TEXTS,
    Block,
    Note,
    Section,
    Tile,
    Tiles,
    Warnings,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_label,
)
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import resampling_unit
from skinmm.report.sections.referral import (
    build_decided_tiles,
    collect_referral_warnings,
    describe_referred,
    describe_shares,
)
from skinmm.report.sections.verdict import build_frequencies, build_verdict

FEW: Final = malignant_for_guarantee(0.95)
WIDTH: Final = 0.1  # of an interval of the AUROC


def build_headline(inputs: ReportInputs) -> Section:
    """Build the section of verdict, natural frequencies, warnings and main numbers."""
    blocks: list[Block] = [build_verdict(inputs)]
    if frequencies := build_frequencies(inputs):
        blocks.append(frequencies)
    if clinic := restate_at_clinic(inputs):
        blocks.append(Note(" ".join(clinic)))
    blocks.append(Warnings(collect_warnings(inputs)))
    return Section(
        "headline",
        "At a glance",
        [*blocks, Tiles(build_tiles(inputs)), Note(_describe_tiles(inputs))],
    )


def collect_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about everything that could make the numbers misleading."""
    warnings = []
    weights = inputs.metrics.get("initialisation") or ""
    if weights.lower().startswith("from scratch"):
        warnings.append(f"The image network had no pretrained weights: {weights}.")
    if inputs.audit.get("leaks"):
        warnings.append(TEXTS["leak"])
    auroc = inputs.estimate("auroc")
    if (low := auroc.get("low")) is not None and low <= 0.5:  # noqa: PLR2004 - chance
        key = "reversed" if auroc["high"] < 0.5 else "chance"  # noqa: PLR2004
        warnings.append(TEXTS[key].format(format_estimate(auroc)))
    rows = inputs.predictions
    if (patients := len(set(rows.patient_id[rows.malignant]))) < FEW:
        warnings.append(_describe_few(inputs, patients))
    if not (rule := inputs.fitted("threshold")):
        warnings.append(TEXTS["assumed"].format(format_number(inputs.threshold)))
    if rule.get("guaranteed") is False:
        warnings.append(_describe_estimate(inputs, rule))
    warnings += _benefit_warnings(inputs) + collect_referral_warnings(inputs)
    if unpredicted := inputs.measured.get("unpredicted", 0):
        warnings.append(TEXTS["unpredicted"].format(format_count(unpredicted, "row")))
    return warnings


def _describe_few(inputs: ReportInputs, patients: int) -> str:
    """Warn of few patients with malignant lesions, and state the number needed."""
    cases = f"{format_count(patients, 'malignant case')} (by {resampling_unit(inputs)})"
    text = TEXTS["few"].format(cases, FEW)
    auroc = inputs.value("auroc")
    if auroc is None or not 0 < auroc < 1:
        return text
    needed = malignant_for_auroc(auroc, WIDTH, inputs.measured["prevalence"])
    if needed <= patients:
        return text
    return f"{text} {TEXTS['few_auroc'].format(WIDTH, f'{needed:,}')}"


def _describe_estimate(inputs: ReportInputs, rule: Mapping[str, Any]) -> str:
    """Describe a threshold without a guarantee, and the number of patients for one."""
    target = inputs.evaluation.get("sensitivity", 0.95)
    needed = malignant_for_guarantee(target, inputs.confidence)
    if rule.get("patients") is None or rule["patients"] >= needed:
        return str(TEXTS["estimate"])
    facts = (format_percent(target), 100 * inputs.confidence, needed, rule["patients"])
    return f"{TEXTS['estimate']} {TEXTS['needed'].format(*facts)}"


def _benefit_warnings(inputs: ReportInputs) -> list[str]:
    """Warn unless the interval of the gain in net benefit over flagging all or none is above 0."""
    entry = inputs.estimate("net_benefit_gain")
    value, low = entry.get("value"), entry.get("low")
    if value is None or (value > 0 and low is not None and low > 0):
        return []
    return [TEXTS["unproven_benefit"].format(format_estimate(entry))]


def build_tiles(inputs: ReportInputs) -> list[Tile]:
    """Return the main numbers with their intervals and meanings."""
    tiles, meanings = [], TEXTS["meanings"]
    if not inputs.predictions.is_binary:
        meanings = TEXTS["class_meanings"] | meanings
    absent = {"within_source_auroc"} - set(inputs.measured["metrics"])
    for name in (name for name in meanings if name not in absent):
        is_share = "auroc" not in name
        value = (format_percent if is_share else format_number)(inputs.value(name))
        interval = format_interval(inputs.estimate(name), percent=is_share) or "no interval"
        tiles.append(Tile(metric_label(name), value, interval, meanings[name]))
    benefit = inputs.estimate("net_benefit_gain")
    return [
        *tiles,
        *build_decided_tiles(inputs),
        Tile(
            metric_label("net_benefit_gain"),
            format_number(benefit.get("value")),
            format_interval(benefit) or "no interval",
            TEXTS["benefit_meaning"],
        ),
        Tile(
            "Calibration slope",
            format_number(inputs.value("calibration_slope"), 2),
            format_interval(inputs.estimate("calibration_slope")) or "no interval",
            f"ideal: 1; {_describe_calibration_error(inputs)}",
        ),
    ]


def _describe_calibration_error(inputs: ReportInputs) -> str:
    text = f"expected calibration error {format_number(inputs.value('ece'))}"
    noise = inputs.measured.get("calibration_noise", {}).get("ece")
    return text if noise is None else f"{text}, by chance alone {format_number(noise)}"


def _describe_tiles(inputs: ReportInputs) -> str:
    text = str(TEXTS["intervals"]).format(100 * inputs.confidence, resampling_unit(inputs))
    return f"{TEXTS['referred']} {text}" if describe_referred(inputs) else text


def restate_at_clinic(inputs: ReportInputs) -> list[str]:
    """Describe the predictive values and net benefit at the prevalence of the clinic."""
    clinic = inputs.measured.get("clinic")
    if not clinic:
        return []
    metrics = clinic["metrics"]
    flagged = TEXTS["clinic_not_flagged"]
    if (number := metrics["number_needed_to_treat"]["value"]) is not None:
        flagged = TEXTS["clinic_flagged"].format(format_number(number, 1))
    sentences = [
        TEXTS["clinic"].format(
            format_percent(clinic["prevalence"], 2),
            format_percent(inputs.measured["prevalence"]),
            flagged,
            format_estimate(metrics["net_benefit_gain"]),
        )
    ]
    if metrics.get("decided_npv"):
        sentences.append(f"At this prevalence, {describe_shares(metrics)}.")
    return sentences
