"""Section on the headline numbers with their warnings."""

from typing import Final

import pandas as pd

from skinmm.report.blocks import (
    TEXTS,
    Block,
    Note,
    Section,
    Tile,
    Tiles,
    format_count,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_label,
)
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import format_counts, resampling_unit
from skinmm.report.sections.referral import (
    build_decided_tiles,
    collect_referral_warnings,
    describe_referred,
    describe_shares,
)

FEW: Final = 59  # with fewer positives, 95 % sensitivity cannot be guaranteed at 95 % confidence


def build_headline(inputs: ReportInputs) -> Section:
    """Build the section with the main numbers, in tiles and in words, and all warnings."""
    blocks: list[Block] = [Note(describe_use(inputs))]
    blocks += [Note(text, warning=True) for text in collect_warnings(inputs)]
    blocks += [Tiles(_build_tiles(inputs)), Note(_summarise(inputs))]
    if clinic := restate_at_clinic(inputs):
        gain = inputs.measured["clinic"]["metrics"]["net_benefit_gain"]["value"]
        blocks.append(Note(" ".join(clinic), warning=gain is not None and gain <= 0))
    return Section("headline", "At a glance", blocks)


def describe_use(inputs: ReportInputs) -> str:
    """Describe in plain language what the model can do in this test, what it cannot, and where."""
    texts, rows, threshold = TEXTS["use"], inputs.predictions, inputs.threshold
    malignant, flagged = rows.malignant, rows.malignancy >= threshold
    if malignant.all() or not malignant.any():
        return str(texts["one_kind"])
    counts = {
        "missed": int((malignant & ~flagged).sum()),
        "malignant": format_count(int(malignant.sum()), "malignant image"),
        "flagged": int((~malignant & flagged).sum()),
        "benign": format_count(int((~malignant).sum()), "benign image"),
        "below": int((~flagged).sum()),
        "prevalence": format_percent(float(malignant.mean())),
    }
    low, gain = inputs.estimate("auroc").get("low"), inputs.value("net_benefit_gain")
    least_gain = inputs.estimate("net_benefit_gain").get("low")
    verdict = "useful" if least_gain is not None and least_gain > 0 else "unproven"
    if low is not None and low <= 0.5:  # noqa: PLR2004 - chance
        verdict = "chance"
    elif gain is None or gain <= 0:
        verdict = "useless" if malignant.mean() > threshold else "useless_none"
    names = [verdict, "can", "cannot"]
    if share := describe_referred(inputs):
        decided = rows.decision == "benign"
        counts |= {"referred": share, "cleared": int((malignant & decided).sum())}
        names.insert(2, "referred")
    return " ".join(texts[name].format(**counts) for name in names)


def collect_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about everything that makes the numbers misleading on their own."""
    warnings = []
    weights = inputs.metrics.get("initialisation") or ""
    if weights.lower().startswith("from scratch"):
        warnings.append(f"The image network had no pretrained weights: {weights}.")
    if inputs.audit.get("leaks"):
        warnings.append(TEXTS["leak"])
    auroc = inputs.estimate("auroc")
    if (low := auroc.get("low")) is not None and low <= 0.5:  # noqa: PLR2004 - chance
        warnings.append(TEXTS["chance"].format(format_estimate(auroc)))
    if (positives := inputs.measured["positives"]) < FEW:
        warnings.append(TEXTS["few"].format(format_count(positives, "malignant image")))
    if not (rule := inputs.fitted("threshold")):
        warnings.append(TEXTS["assumed"].format(format_number(inputs.threshold)))
    if rule.get("guaranteed") is False:
        warnings.append(TEXTS["estimate"])
    warnings += _benefit_warnings(inputs) + collect_referral_warnings(inputs)
    if unpredicted := inputs.measured.get("unpredicted", 0):
        warnings.append(TEXTS["unpredicted"].format(format_count(unpredicted, "row")))
    return warnings


def _benefit_warnings(inputs: ReportInputs) -> list[str]:
    """Warn unless the threshold is shown to have more net benefit than flagging all or none."""
    entry = inputs.estimate("net_benefit_gain")
    value, low = entry.get("value"), entry.get("low")
    if value is None or (value > 0 and low is not None and low > 0):
        return []
    return [TEXTS["unproven_benefit"].format(format_estimate(entry))]


def _build_tiles(inputs: ReportInputs) -> list[Tile]:
    measured = inputs.measured
    positives, rows = measured["positives"], measured["n"]
    counts = format_counts(inputs.units, pd.Series(inputs.predictions.patient_id))
    predicted = format_percent(inputs.value("mean_probability"))
    tiles, meanings = [], TEXTS["meanings"]
    if not inputs.predictions.is_binary:
        meanings = TEXTS["class_meanings"] | meanings
    for name, meaning in meanings.items():
        is_share = "auroc" not in name
        value = (format_percent if is_share else format_number)(inputs.value(name))
        interval = format_interval(inputs.estimate(name), percent=is_share) or "no interval"
        tiles.append(Tile(metric_label(name), value, interval, meaning))
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
        Tile(
            "Malignant images",
            f"{positives:,}",
            f"of {counts}",
            f"{format_percent(positives / rows)}; mean predicted probability {predicted}",
        ),
    ]


def _describe_calibration_error(inputs: ReportInputs) -> str:
    text = f"expected calibration error {format_number(inputs.value('ece'))}"
    noise = inputs.measured.get("calibration_noise", {}).get("ece")
    return text if noise is None else f"{text}, by chance alone {format_number(noise)}"


def _summarise(inputs: ReportInputs) -> str:
    sensitivity, specificity = inputs.value("sensitivity"), inputs.value("specificity")
    intervals = TEXTS["intervals"].format(100 * inputs.confidence, resampling_unit(inputs))
    if sensitivity is None or specificity is None:
        return f"Sensitivity and specificity need malignant and benign lesions. {intervals}"
    hits, rejected = 100 * sensitivity, 100 * specificity
    threshold = format_number(inputs.threshold)
    sentences = [TEXTS["of_100"].format(threshold, hits, 100 - hits, 100 - rejected)]
    if flagged := inputs.value("number_needed_to_treat"):
        sentences.append(f"One in {flagged:.1f} flagged lesions is malignant.")
    if share := describe_referred(inputs):
        sentences.append(TEXTS["referred"].format(share))
    return " ".join([*sentences, intervals])


def restate_at_clinic(inputs: ReportInputs) -> list[str]:
    """Return the predictive values and net benefit at the prevalence of the clinic, in words."""
    clinic = inputs.measured.get("clinic")
    if not clinic:
        return []
    metrics = clinic["metrics"]
    sentences = [
        TEXTS["clinic"].format(
            format_percent(clinic["prevalence"], 2),
            format_percent(inputs.measured["prevalence"]),
            format_number(metrics["number_needed_to_treat"]["value"], 1),
            format_estimate(metrics["net_benefit_gain"]),
        )
    ]
    if metrics.get("decided_npv"):
        sentences.append(f"There, {describe_shares(metrics)}.")
    return sentences
