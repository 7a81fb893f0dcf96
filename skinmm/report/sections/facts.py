"""What files say of a run, in words that checklists quote; an empty text where they say nothing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, Final

from skinmm.report.format import format_count, format_estimate, format_number, format_percent
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import counted, parts_of, patients_in, unit_of
from skinmm.report.sections.headline import referred, warnings_of
from skinmm.report.sections.subgroups import metrics_by_missing_share

KINDS: Final = dict.fromkeys(
    ("demo", "siim_isic", "ham10000", "isic_2017", "isic_2018", "isic_2019"), "dermoscopic images"
) | {"isic_2024": "crops of total-body photographs", "pad_ufes_20": "smartphone photographs"}
"""What a cohort's pictures are."""
ANY_KIND: Final = "images of skin lesions"
CALLS: Final = {
    "likeliest": "Called is the likeliest class, whatever the threshold.",
    "balanced": "Called is the class whose probability is largest for its share of the training "
    "rows (evaluation.call=balanced): rare classes count as much as frequent ones.",
    "stated": "Called is the class that the file says.",
}


def remarks(evidence: ReportInputs) -> list[str]:
    """Short remarks under a title."""
    rows = evidence.predictions
    config = evidence.config
    named = [(key, config.get(key, {}).get("name")) for key in ("data", "model", "fusion")]
    if ("fusion", "tabular_only") in named:
        named = [(key, name) for key, name in named if key != "model"]
    return [
        *(f"{key} {name}" for key, name in named if name),
        *counted(len(rows), evidence.measured["patients"], unit_of(evidence)),
        f"{int(rows.malignant.sum()):,} malignant",
    ]


def facts_of(evidence: ReportInputs) -> dict[str, str]:
    """Name -> text. The checklists under `templates/` name the facts they need."""
    measured = evidence.measured
    return {
        "outcome": _outcome(evidence),
        "sizes": _sizes(evidence),
        "sources": _sources(evidence),
        "table": "See Data and split." if parts_of(evidence) else "",
        "groups": "See Subgroups." if evidence.records is not None else "",
        "unpredicted": f"Not predicted: {measured.get('unpredicted', 0):,}.",
        "performance": _performance(evidence),
        "threshold": f"{_threshold(evidence)} {call_of(evidence)}".strip(),
        "warnings": " ".join(warnings_of(evidence)),
        "limits": "\n".join(_limits(evidence)),
        "checkpoint": _checkpoint(evidence),
        "calibration": _calibration(evidence),
        "initialisation": evidence.initialisation or "",
        "images": _images(evidence),
        "command": _placeless(evidence.environment.get("command", [])),
        **_configured(evidence.config),
    }


def _configured(config: Mapping[str, Any]) -> dict[str, str]:
    """What the configuration says."""
    keys = ("data", "model", "fusion", "loss", "sampler", "optimizer", "trainer")
    data, model, fusion, loss, sampler, optimizer, trainer = (config.get(key, {}) for key in keys)
    block = fusion.get("name")
    image = [] if block == "tabular_only" else ["the image"]
    record = [] if block == "image_only" else list(data.get("columns", []))
    network = f"Image network {model.get('name')} at {model.get('image_size')} pixels, "
    facts = {
        "inputs": f"{', '.join([*image, *record])}.",
        "network": f"{network if image else ''}fusion {block}.",
        "side": str(model.get("image_size")) if image else "",
        "balance": f"Sampler {sampler.get('name')}, loss {loss.get('name')}.",
        "fitting": f"Optimiser {optimizer.get('name')}, learning rate {optimizer.get('lr')}, at "
        f"most {trainer.get('max_epochs')} epochs; {_kept(trainer)}.",
        "split": f"Patients, lesions and known duplicates stay together; {data.get('folds')} "
        f"parts, tested: {data.get('fold')}. Early stopping, calibration and threshold saw "
        "validation only.",
        "absent_images": str(data.get("missing")),
    }
    return facts if config else dict.fromkeys(facts, "")


def _kept(trainer: Mapping[str, Any]) -> str:
    several, monitor = trainer.get("average_best") or 1, trainer.get("monitor")
    if several == 1:
        return f"the best by {monitor} is kept"
    return f"the mean of the {several} best by {monitor} is kept"


def _outcome(evidence: ReportInputs) -> str:
    rows = evidence.predictions
    if rows.is_binary:
        return "whether a lesion is malignant"
    names, malignant = ", ".join(rows.classes), ", ".join(rows.positive)
    return f"the diagnosis, one of {names} (malignant: {malignant})"


def _sizes(evidence: ReportInputs) -> str:
    parts = {
        label: (len(rows), patients_in(rows), int(rows["malignant"].sum()))
        for label, rows in parts_of(evidence).items()
    }
    measured = evidence.measured
    found = parts or {"Evaluation": (measured["n"], measured["patients"], measured["positives"])}
    return " ".join(
        f"{label}: {' of '.join(counted(images, patients, unit_of(evidence)))}, "
        f"{malignant:,} malignant."
        for label, (images, patients, malignant) in found.items()
    )


def _sources(evidence: ReportInputs) -> str:
    if evidence.cohort is None or "source" not in evidence.cohort:
        return ""
    counts = evidence.cohort["source"].value_counts()
    return "; ".join(
        f"{name}: {format_count(int(count), 'image')}" for name, count in counts.items()
    )


def _images(evidence: ReportInputs) -> str:
    """What kind of pictures the cohorts hold."""
    table = evidence.cohort
    names = [evidence.config.get("data", {}).get("name")]
    if table is not None and "source" in table:
        names = list(table["source"].unique())
    # The name of a cohort that was added to one like it has a number.
    kinds = {KINDS.get(str(name).partition(" (")[0], ANY_KIND) for name in names}
    return " and ".join(sorted(kinds))


_ROOT: Final = (
    r"(?:/|\\\\|[A-Za-z]:[\\/]|~\w*[\\/]|(?:\.[\\/])*\.\.[\\/]|file:/|\w+:///)"  # of a machine
)
# A whole word or setting; or an item of a list or mapping, up to what can only follow it.
_ROOTED: Final = re.compile(
    rf"""^((?:(?!{_ROOT})[^=]*=)?\s*){_ROOT}.*|((?:[=\[,{{'"]|:(?!//)|\broot:)\s*){_ROOT}"""
    rf""".*?(?=['"\]}}]|,\s*(?:\w+\s*:|['"{{\[]|{_ROOT})|$)"""
)
_COMMANDS: Final = ("skinmm", "torchrun")
_FILES: Final = {
    *(".py", ".yaml", ".yml", ".json", ".csv", ".tsv", ".parquet", ".pq"),
    *(".ckpt", ".pt", ".pth", ".safetensors", ".bin", ".npz", ".onnx"),
}


def _placeless(command: Sequence[str]) -> str:
    """A command, of a machine's paths the name of a usual file or command, else DIR."""

    def short(found: re.Match[str]) -> str:
        before = found[1] or found[2] or ""
        path = PureWindowsPath(found[0].removeprefix(before))  # which knows either slash
        known = path.name in _COMMANDS or path.suffix.lower() in _FILES
        return before + (path.name if known else "DIR")

    return " ".join(_ROOTED.sub(short, word) for word in command)


def _performance(evidence: ReportInputs) -> str:
    names = ("auroc", "sensitivity", "specificity", "calibration_slope")
    labels = ("AUROC", "sensitivity", "specificity", "calibration slope")
    found = (
        f"{label} {format_estimate(evidence.estimate(name))}"
        for name, label in zip(names, labels, strict=True)
    )
    if left := referred(evidence):
        left = f", referred to a person: {left}"
    return f"{', '.join(found)}{left}; {100 * evidence.confidence:.0f} % intervals."


def _threshold(evidence: ReportInputs) -> str:
    text = f"Malignant from a probability of {format_number(evidence.threshold)}"
    if not evidence.rule:
        return f"{text}, which nobody chose."
    if "guaranteed" not in evidence.rule:
        return f"{text}, {evidence.rule['rule']}."
    wish = evidence.config.get("evaluation", {})
    aim = f"the rule {evidence.rule.get('rule')}"
    if evidence.rule.get("rule") == "sensitivity" and "sensitivity" in wish:
        sure = f"with {format_percent(wish['confidence'])} confidence"
        bound = sure if evidence.rule["guaranteed"] else "as an estimate without a bound"
        aim = f"a sensitivity of {format_percent(wish['sensitivity'])}, {bound}"
    return f"{text}, chosen on validation patients for {aim}."


def _limits(evidence: ReportInputs) -> list[str]:
    """Warnings, what the audit found, what missing columns cost, and whether others judged it."""
    found, audit = warnings_of(evidence), evidence.audit
    if audit and not audit.get("leaks"):
        found.append("The audit found no leak between training, validation and test.")
    if warnings := audit.get("warnings"):
        found += [f"Shortcut: {warning}." for warning in warnings]
    elif audit.get("size_auroc") is not None:
        size = format_number(audit["size_auroc"])
        found.append(f"Width and height of the image alone, which are the camera: AUROC {size}.")
    elif audit:
        found.append("Shortcuts of cameras were not looked for: image sizes are not known.")
    elif evidence.config:
        found.append("The cohort and its split were not audited.")
    if len(parts := metrics_by_missing_share(evidence)) > 1:
        whole, none = (
            format_estimate(parts[share]["metrics"]["auroc"]) for share in (0.0, max(parts))
        )
        found.append(f"AUROC {whole} with the whole record, {none} where it is missing.")
    if evidence.config:
        found.append("No external validation: training and test come from the same cohort.")
    return found


def _checkpoint(evidence: ReportInputs) -> str:
    """Where a run keeps what predicts, from its folder on; of several folds a pattern."""
    folds = "" if evidence.predictions.fold is None else "fold_*/"
    return f"{folds}checkpoints/best.ckpt" if evidence.config else ""


def call_of(evidence: ReportInputs) -> str:
    """What rule said which of several classes is called; nothing of a binary file."""
    rows = evidence.predictions
    unsaid = "likeliest" if rows.called is None else "stated"
    rule = evidence.config.get("evaluation", {}).get("call", unsaid)
    return "" if rows.is_binary else CALLS[rule]


def _calibration(evidence: ReportInputs) -> str:
    if not evidence.config:
        return ""
    state = evidence.metrics.get("calibration")
    method = state.get("method", "none") if isinstance(state, Mapping) else "none"
    if evidence.predictions.fold is not None:
        method = f"{evidence.config.get('evaluation', {}).get('calibration')}, in each fold"
    return (
        "The shift of sampler and class weights is taken back in closed form; further calibration, "
        f"fitted on validation patients: {method}."
    )
