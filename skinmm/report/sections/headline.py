"""What a clinic reads first: does it rank, what does it miss, can its probabilities be believed."""

from typing import Final

from skinmm.report.blocks import Block, Note, Section, Tile, Tiles
from skinmm.report.format import estimate, interval, number, percent, plural
from skinmm.report.inputs import Evidence
from skinmm.report.sections.cohort import counted, unit_of
from skinmm.report.sections.referral import referred, unpromised

CHANCE: Final = 0.5
FEW: Final = (
    59  # positives below which no threshold can promise 95 % sensitivity with 95 % confidence
)


def headline(evidence: Evidence) -> Section:
    """The numbers with their intervals, in words too, and every warning about them."""
    blocks: list[Block] = [Note(text, loud=True) for text in warnings_of(evidence)]
    blocks += [Tiles(_tiles(evidence)), Note(_in_words(evidence))]
    return Section("headline", "At a glance", blocks)


def warnings_of(evidence: Evidence) -> list[str]:
    """Whatever would mislead a reader who saw the numbers alone."""
    found = []
    initialisation = evidence.initialisation
    if initialisation and initialisation.lower().startswith("from scratch"):
        found.append(f"The image network had no pretrained weights: {initialisation}.")
    if evidence.audit.get("leaks"):
        found.append(
            "The split leaks: the same patient, lesion or picture is, or may be, in training and "
            "test. These numbers are too good."
        )
    ranked = evidence.estimate("auroc") or {}
    if (lowest := ranked.get("low")) is not None and lowest <= CHANCE:
        found.append(f"That it ranks better than chance is not shown: AUROC {estimate(ranked)}.")
    positives = evidence.measured["positives"]
    if positives < FEW:
        found.append(
            f"Only {plural(positives, 'malignant image')} in the test set: read the intervals, not "
            "the numbers."
        )
    if not evidence.rule:
        found.append(f"No decision threshold is known: {number(evidence.threshold)} is assumed.")
    if evidence.rule.get("guaranteed") is False:
        found.append(
            "The sensitivity at the threshold is an estimate, not a guaranteed lower bound."
        )
    found += unpromised(evidence)
    unpredicted = evidence.measured.get("unpredicted", 0)
    if unpredicted:
        found.append(
            f"{plural(unpredicted, 'row')} could not be predicted and are not counted here."
        )
    return found


def _tiles(evidence: Evidence) -> list[Tile]:
    slope, error = evidence.estimate("calibration_slope"), evidence.estimate("ece")
    measured = evidence.measured
    bounds = interval(slope)
    return [
        _tile(
            evidence, "auroc", "AUROC", "chance that a malignant lesion ranks above a benign one"
        ),
        _tile(evidence, "sensitivity", "Sensitivity", "of the malignant lesions are flagged"),
        _tile(evidence, "specificity", "Specificity", "of the benign lesions are left alone"),
        Tile(
            "Calibration slope",
            number(_value(slope), 2),
            bounds or "no interval",
            f"1 is right; expected calibration error {number(_value(error))}",
        ),
        Tile(
            "Malignant images",
            f"{measured['positives']:,}",
            f"of {', '.join(counted(measured['n'], measured['patients'], unit_of(evidence)))}",
            f"{percent(measured['positives'] / measured['n'])}; mean predicted probability "
            f"{percent(_value(evidence.estimate('mean_probability')))}",
        ),
    ]


def _tile(evidence: Evidence, name: str, label: str, meaning: str) -> Tile:
    share = name != "auroc"
    found = evidence.estimate(name)
    value = _value(found)
    return Tile(
        label,
        percent(value) if share else number(value),
        interval(found, share=share) or "no interval",
        meaning,
    )


def _in_words(evidence: Evidence) -> str:
    found, spared = (_value(evidence.estimate(name)) for name in ("sensitivity", "specificity"))
    share, unit = f"{100 * evidence.confidence:.0f} %", unit_of(evidence)
    intervals = f"Ranges are {share} intervals from resampling {unit}s."
    if found is None or spared is None:
        return f"Sensitivity and specificity need malignant and benign lesions. {intervals}"
    flagged = _value(evidence.estimate("number_needed_to_treat"))
    yielded = f" One in {flagged:.1f} flagged lesions is malignant." if flagged else ""
    if left := referred(evidence):
        left = f" Referred to a person: {left}; they count here as the threshold calls them."
    return (
        f"With the threshold at a probability of {number(evidence.threshold)}: of 100 malignant "
        f"lesions {100 * found:.0f} are flagged and {100 - 100 * found:.0f} missed; of 100 benign "
        f"ones {100 - 100 * spared:.0f} are flagged needlessly.{yielded}{left} {intervals}"
    )


def _value(found: object) -> float | None:
    return found["value"] if isinstance(found, dict) else None
