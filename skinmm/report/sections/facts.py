"""Facts about a run in words, for checklists and the card; "" if unknown."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, Final

import pandas as pd

from skinmm.config import name_cohort, name_relative
from skinmm.errors import format_count
from skinmm.report.blocks import (
    TEXTS,
    format_estimate,
    format_number,
    format_percent,
    metric_label,
)
from skinmm.report.inputs import ReportInputs, name_fitted_head
from skinmm.report.sections.cohort import (
    PARTS,
    format_counts,
    image_kinds,
    resampling_unit,
    split_parts,
)
from skinmm.report.sections.headline import collect_warnings, restate_at_clinic
from skinmm.report.sections.referral import describe_decided, describe_referred, describe_rule
from skinmm.report.sections.subgroups import metrics_by_missing_share
from skinmm.vocabulary import name_units, resolve_patients

SAME_SHARE: Final = 1e-9


def describe_run(inputs: ReportInputs) -> list[str]:
    """Describe data, model, and numbers of images and patients, for the head of a page."""
    rows = inputs.predictions
    names = {key: inputs.config.get(key, {}).get("name") for key in ("data", "model", "fusion")}
    names["data"] = name_cohort(inputs.config.get("data", {}))
    if names["fusion"] == "tabular_only":
        names["model"] = None
    return [
        *(f"{key} {name}" for key, name in names.items() if name),
        format_counts(inputs.units, pd.Series(rows.patient_id)),
        f"{int(rows.malignant.sum()):,} malignant",
    ]


def collect_facts(inputs: ReportInputs) -> dict[str, str]:
    """Return the facts named in the checklists under `templates/`, as name -> text."""
    decision = _describe_threshold(inputs), describe_call_rule(inputs), describe_rule(inputs)
    has_sources = inputs.records is not None and bool(inputs.measured.get("sources"))
    return {
        **_describe_cohort(inputs),
        "groups": "See Subgroups." if inputs.records is not None else "",
        "by_source": "By source: see Subgroups." if has_sources else "",
        "unpredicted": f"Not predicted: {inputs.measured.get('unpredicted', 0):,}.",
        "unit": resampling_unit(inputs),
        "performance": _describe_performance(inputs),
        "threshold": " ".join(filter(None, decision)),
        "warnings": " ".join(collect_warnings(inputs)),
        "limits": "\n".join(_collect_limits(inputs)),
        "checkpoint": inputs.checkpoint if inputs.config else "",
        "calibration": _describe_calibration(inputs),
        "initialisation": inputs.metrics.get("initialisation") or "",
        "software": "Versions: see Configuration." if inputs.environment else "",
        "command": _anonymize_command(inputs.environment.get("command", [])),
        **_describe_config(inputs.config, f"fitted_on_{inputs.metrics.get('fitted_on', 'val')}"),
        "fitting": _describe_fitting(inputs),
    }


def _describe_cohort(inputs: ReportInputs) -> dict[str, str]:
    rows, measured, parts = inputs.predictions, inputs.measured, split_parts(inputs)
    outcome = "whether a lesion is malignant"
    if not rows.is_binary:
        malignant = f"(malignant: {', '.join(rows.positive)})"
        outcome = f"the diagnosis, one of {', '.join(rows.classes)} {malignant}"
    counts = {
        label: (name_units(part), resolve_patients(part), int(part["malignant"].sum()))
        for label, part in parts.items()
    } or {"Evaluation": (inputs.units, pd.Series(rows.patient_id), measured["positives"])}
    sizes = (
        f"{label}: {format_counts(units, patients)}, {malignant:,} malignant."
        for label, (units, patients, malignant) in counts.items()
    )
    sources = ""
    if inputs.cohort is not None and "source" in inputs.cohort:
        counted = inputs.cohort["source"].value_counts().items()
        sources = "; ".join(f"{name}: {format_count(int(n), 'image')}" for name, n in counted)
        sources += _count_licences(inputs.cohort)
    return {
        "outcome": outcome,
        "sizes": " ".join(sizes),
        "sources": sources,
        "table": "See Who was in the data." if parts else "",
        "images": image_kinds(inputs),
    }


def _count_licences(cohort: pd.DataFrame) -> str:
    """Count the images with each licence; licences of a lesion's images are separated by `|`."""
    if "licence" not in cohort or cohort["licence"].isna().all():
        return ""
    licences = cohort["licence"].fillna("").str.split("|", regex=False).explode()
    counted = licences.replace("", "none stated").value_counts().items()
    images = (f"{name} ({format_count(n, 'image')})" for name, n in counted)
    return f". Licences: {', '.join(images)}"


def _describe_config(config: Mapping[str, Any], fitted_on: str) -> dict[str, str]:
    keys = ("data", "model", "fusion", "loss", "sampler")
    data, model, fusion, loss, sampler = (config.get(key, {}) for key in keys)
    head = name_fitted_head(config)
    part = f"{fitted_on}_head" if head else fitted_on
    block = fusion.get("name")
    image = [] if block == "tabular_only" else ["the image"]
    record = [*data.get("columns", []), *name_relative(data.get("relative", []))]
    record = [] if block == "image_only" else record
    frozen = ", frozen" if model.get("freeze") or model.get("tune") == "head" else ""
    network = f"Image network {model.get('name')} at {model.get('image_size')} pixels{frozen}, "
    fold = data.get("fold")
    tested = TEXTS["tested_parts"]["all" if fold == "all" else "one"].format(fold)
    split = TEXTS["split"].format(data.get("folds"), tested)
    if data.get("split") == "source":
        split = TEXTS["split_by_source"].format("every source" if fold == "all" else f"fold {fold}")
    facts = {
        "inputs": f"{', '.join([*image, *record])}.",
        "network": f"{network if image else ''}fusion {block}{f', head {head}' if head else ''}.",
        "side": str(model.get("image_size")) if image else "",
        "balance": f"Sampler {sampler.get('name')}, loss {loss.get('name')}.",
        "split": f"{split} {TEXTS[part]}",
        "absent_images": TEXTS["absent_images"].get(data.get("missing"), "") if image else "",
    }
    return facts if config else dict.fromkeys(facts, "")


def _describe_fitting(inputs: ReportInputs) -> str:
    """Describe optimiser, length and the selection of the epoch, or the fitting of the head."""
    if head := name_fitted_head(inputs.config):
        chosen = inputs.metrics.get("fitted_head", {})
        listed = ", ".join(f"{name} {chosen[name]:.4g}" for name in chosen if name != "seconds")
        text = TEXTS["fitting_head"].format(head, f": {listed}" if listed else "")
        return f"{text} {TEXTS['final_head'].format(**final)}" if (final := inputs.final) else text
    optimizer, trainer = (inputs.config.get(key, {}) for key in ("optimizer", "trainer"))
    selection = inputs.metrics.get("selection", {})
    averaged, window = trainer.get("average_best") or 1, selection.get("window", 1)
    text = TEXTS["fitting"][0 if averaged == 1 else 1].format(averaged)
    text += TEXTS["selection"][0 if window == 1 else 1].format(trainer.get("monitor"), window)
    start = "Optimiser {}, learning rate {}, at most {} epochs".format(
        optimizer.get("name"), optimizer.get("lr"), trainer.get("max_epochs")
    )
    final = inputs.final
    last = f" {TEXTS['final'].format(**final, unit=resampling_unit(inputs))}" if final else ""
    return f"{start}; {text}.{last}" if inputs.config else ""


_ROOT: Final = (  # start of a path that identifies a machine
    r"(?:/|\\\\|[A-Za-z]:[\\/]|~\w*[\\/]|(?:\.[\\/])*\.\.[\\/]|file:/|\w+:///)"
)
# A whole word or setting; or an item of a list or mapping, up to what can only follow it.
_ROOTED: Final = re.compile(
    rf"""^((?:(?!{_ROOT})[^=]*=)?\s*){_ROOT}.*|((?:[=\[,{{'"]|:(?!//)|\broot:)\s*){_ROOT}"""
    rf""".*?(?=['"\]}}]|,\s*(?:\w+\s*:|['"{{\[]|{_ROOT})|$)"""
)
_FILES: Final = {
    *(".py", ".yaml", ".yml", ".json", ".csv", ".tsv", ".parquet", ".pq"),
    *(".ckpt", ".pt", ".pth", ".safetensors", ".bin", ".npz", ".onnx"),
}


def _anonymize_command(command: Sequence[str]) -> str:
    """Replace each path in a command by its file name, or by `DIR`."""

    def shorten_path(match: re.Match[str]) -> str:
        before = match[1] or match[2] or ""
        path = PureWindowsPath(match[0].removeprefix(before))  # accepts both slashes
        is_shown = path.name in ("skinmm", "torchrun") or path.suffix.lower() in _FILES
        return before + (path.name if is_shown else "DIR")

    return " ".join(_ROOTED.sub(shorten_path, word) for word in command)


def _describe_performance(inputs: ReportInputs) -> str:
    parts = [
        f"{label} {format_estimate(inputs.estimate(label.lower().replace(' ', '_')))}"
        for label in ("AUROC", "sensitivity", "specificity", "calibration slope")
    ]
    if inputs.value("within_source_auroc") is not None:
        within = format_estimate(inputs.estimate("within_source_auroc"))
        parts.insert(1, f"{metric_label('within_source_auroc')} {within}")
    label = metric_label("net_benefit_gain").lower()
    parts.append(f"{label} {format_estimate(inputs.estimate('net_benefit_gain'))}")
    if share := describe_referred(inputs):
        parts.append(f"referred to a person: {share}")
    sentences = [f"{', '.join(parts)}; {100 * inputs.confidence:.0f} % intervals."]
    return " ".join([*sentences, *describe_decided(inputs), *restate_at_clinic(inputs)])


def _describe_threshold(inputs: ReportInputs) -> str:
    rule, is_final = inputs.fitted("threshold"), bool(inputs.final)
    value = rule["value"] if is_final else inputs.threshold
    text = f"Flagged as malignant from a probability of {format_number(value)}"
    if not rule:
        return f"{text}, the default; it was not chosen on data."
    if "guaranteed" not in rule:
        return f"{text}, {rule['rule']}."
    options = inputs.evaluation
    if rule["rule"] == "cost":
        return f"{text}, {TEXTS['cost_threshold'].format((1 - value) / value)}."
    aim = f"the rule {rule.get('rule')}"
    if rule.get("rule") == "sensitivity" and "sensitivity" in options:
        bound = "as an estimate without a bound"
        if rule["guaranteed"]:
            unit = resampling_unit(inputs)
            confidence = format_percent(options["confidence"])
            bound = f"guaranteed over {unit}s with {confidence} confidence"
        if not (rule["guaranteed"] or is_final) and rule.get("bound") is not None:
            counts = (rule["found"], rule["patients"], resampling_unit(inputs))
            levels = (format_percent(value) for value in (rule["bound"], options["confidence"]))
            bound = TEXTS["bound"].format(*counts, *levels)
        aim = f"a sensitivity of {format_percent(options['sensitivity'])}, {bound}"
    if is_final:
        folds = TEXTS["threshold_of_folds"].format(format_number(inputs.threshold))
        return f"{text}, chosen on the test predictions of the folds for {aim}. {folds}"
    part = _name_fitting_part(inputs)
    is_apart = inputs.metrics.get("fitted_on") == "calibration" or inputs.has_fitted_head
    optimism = "" if is_apart else _describe_optimism(inputs)
    pooled = "" if inputs.predictions.fold is None else f" {TEXTS['pooled_threshold']}"
    return f"{text},{pooled} chosen on the {part} for {aim}. {optimism}".strip()


def _describe_optimism(inputs: ReportInputs) -> str:
    """Describe the bias of the guarantee if the same rows selected epoch and threshold."""
    if inputs.metrics.get("fitted_on") == "mixed":
        return str(TEXTS["optimism_mixed"])
    is_pooled = inputs.predictions.fold is not None  # no entry: folds of different windows
    window = inputs.metrics.get("selection", {}).get("window", None if is_pooled else 1)
    if figures := TEXTS["optimism_figures"].get(window):
        return TEXTS["optimism"].format(*figures)
    rule = f" by the mean of {window} epochs" if window else ""
    return TEXTS["optimism_unmeasured"].format(rule)


def _collect_limits(inputs: ReportInputs) -> list[str]:
    """Return limits: warnings, audit findings, missing columns, lack of external validation."""
    limits, audit = collect_warnings(inputs), inputs.audit
    if audit and not audit.get("leaks"):
        limits.append(TEXTS["no_leak"])
    if audit.get("possible_leaks"):  # whose text names patients
        limits.append(TEXTS["possible_leak"])
    limits += [f"Not checked: {text}." for text in audit.get("unchecked", [])]
    if warnings := audit.get("warnings"):
        limits += [f"Shortcut: {warning}." for warning in warnings]
    elif audit.get("size_auroc") is not None:
        limits.append(TEXTS["size_limit"].format(format_number(audit["size_auroc"])))
    elif not audit and inputs.config:
        limits.append("The cohort and its split were not audited.")
    if len(parts := metrics_by_missing_share(inputs)) > 1:
        complete, without = (
            format_estimate(parts[share]["metrics"]["auroc"]) for share in (0.0, max(parts))
        )
        limits.append(f"AUROC {complete} with the complete record, {without} without it.")
    if inputs.config:
        by_source = inputs.config.get("data", {}).get("split") == "source"
        limits.append(TEXTS["inside_sources" if by_source else "inside"])
    return limits


def describe_call_rule(inputs: ReportInputs) -> str:
    """Describe the rule for the predicted class of several; "" for binary predictions."""
    rows = inputs.predictions
    default = "likeliest" if rows.called is None else "stated"
    return "" if rows.is_binary else TEXTS["calls"][inputs.evaluation.get("call", default)]


def _describe_calibration(inputs: ReportInputs) -> str:
    if not inputs.config:
        return ""
    method = inputs.fitted("calibration").get("method", "none")
    if inputs.predictions.fold is not None:
        setting = inputs.evaluation.get("calibration", "auto")
        method = f"{'chosen' if setting == 'auto' else setting} in each fold"
    text = TEXTS["calibration"].format(_name_fitting_part(inputs), method)
    return " ".join([*list_corrections(inputs), text])


def _name_fitting_part(inputs: ReportInputs) -> str:
    """Name the part whose rows calibration and threshold are fitted to."""
    part = inputs.metrics.get("fitted_on", "val")
    if part == "mixed":  # folds with and without a calibration part
        return "calibration part of the fold, or else its validation part"
    return f"{PARTS[part].lower()} part"


def list_corrections(inputs: ReportInputs) -> list[str]:
    """Describe the effects of loss, sampler and mixing on probabilities, corrected or not."""
    names = {key: inputs.config.get(key, {}).get("name") for key in ("loss", "sampler", "mix")}
    fitted, sentences = inputs.fitted("calibration"), []
    if fitted.get("inverse"):
        sentences.append("inverted")
    elif "inverse" not in fitted or fitted["inverse"] is None:
        is_plain = names["loss"] in (None, "cross_entropy", "weighted_cross_entropy")
        sentences += [] if is_plain else ["not_inverted"]
    trained, deployed = fitted.get("prior") or ((), ())
    if any(abs(a - b) > SAME_SHARE for a, b in zip(trained, deployed, strict=True)):
        sentences.append("prior")
    sentences += ["patient_balanced"] if names["sampler"] == "patient_balanced" else []
    sentences += ["mix"] if names["mix"] not in (None, "none") else []
    return [TEXTS["corrections"][sentence].format(**names) for sentence in sentences]
