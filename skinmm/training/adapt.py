"""`skinmm adapt`: fit the calibration and the decision of a checkpoint to the lesions of a site."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from skinmm.config import Config, EvaluationConfig, PredictConfig, from_mapping
from skinmm.config.checkpoints import find_checkpoint
from skinmm.config.commands import AdaptConfig
from skinmm.errors import InputError, print_line, require_new_output
from skinmm.evaluation.adaptation import NONE, estimate_shift, fit_adaptation
from skinmm.evaluation.calibration import Calibration, apply_scale
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.drift import describe_columns
from skinmm.evaluation.metrics import describe_probabilities
from skinmm.evaluation.planning import malignant_for_guarantee
from skinmm.evaluation.prediction_files import PredictionFile
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.evaluation.thresholds import Threshold
from skinmm.models.checkpoint import Card, CheckpointError, load_card, save_ensemble
from skinmm.predict.job import predict_file
from skinmm.predict.writer import require_output_file
from skinmm.report.sites import write_adaptation_page
from skinmm.training.calibrate import fit_rules, to_stored_rule
from skinmm.vocabulary import resolve_patients

SUFFIX: Final = ".ckpt"
AGREEMENT: Final = 0.999
"""Share of rows whose prediction sets must be those of the checkpoint; the rest may be rounding."""
NOTE: Final = (
    "The figures are of its test, before its probabilities, threshold and referral were adapted to "
    "a site ({})."
)


class _Fit(NamedTuple):
    """Map for a site.

    Attributes:
        facts: entries of the record.
        state: the map, see `fit_map`; None: the probabilities stay as they are.
        shares: of the classes at the site.
        decided: adapted rows that the decision is fitted to.
        here: adapted probabilities of the site.
        pair: rows of the site before and after, each adapted without its patient; None without
            labels.
    """

    facts: dict[str, Any]
    state: dict[str, Any] | None
    shares: list[float]
    decided: Predictions
    here: Float64[np.ndarray, "n c"]
    pair: tuple[Predictions, Predictions] | None


def adapt(config: AdaptConfig) -> int:
    """Write a checkpoint that is adapted to the rows of a site, and its page."""
    path, output = find_checkpoint(Path(config.checkpoint)), Path(config.output)
    require_new_output("page", Path(config.page), overwrite=config.overwrite)
    if output.suffix != SUFFIX:
        raise InputError(f"output={output}: the suffix must be {SUFFIX}")
    require_output_file("output", output, overwrite=config.overwrite)
    card = _load_adaptable(path)
    file = _predict(config, path, output)
    table = _read_own_predictions(file, card, "input")
    if {"target", "diagnosis"} & {*table.table.dropna(axis=1, how="all")}:
        fit = _fit_labelled(file, card)
    else:
        fit = _fit_unlabelled(_find_reference(config, path), table, card)
    source = Path(config.input) if Path(config.input).is_file() else file
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "source": sha256(source.read_bytes()).hexdigest(),
        "checkpoint": sha256(path.read_bytes()).hexdigest(),
        "rows": len(table.table),
        "unpredicted": table.unpredicted,
        "patients": int(resolve_patients(table.table).nunique()),
        "unit": str(pd.Series(table.parse_units()).mode()[0]),  # what `patients` counts
        **fit.facts,
    }
    rules = from_mapping(Config, card.config).evaluation
    changes = _to_card(card, fit, facts, rules)
    save_ensemble([path], output, **changes)
    thresholds = Threshold(**card.threshold or {}), Threshold(**changes["threshold"])
    target = (rules.sensitivity, rules.confidence)
    notes = write_adaptation_page(Path(config.page), facts, fit.pair, thresholds, target)
    print_line("\n".join([*notes, f"checkpoint: {output}", f"page: {config.page}"]))
    return 0


def _load_adaptable(path: Path) -> Card:
    card = load_card(path)[0]
    if (task := card.config.get("task", "classification")) != "classification":
        raise CheckpointError(f"{path}: checkpoint of task={task}; adapt a classifier")
    if card.adaptation:
        raise CheckpointError(
            f"{path}: adapted to a site already; adapt the checkpoint that it was made from"
        )
    if not (card.calibration and card.threshold):
        raise CheckpointError(f"{path}: never calibrated; finish the training run first")
    return card


def _predict(config: AdaptConfig, checkpoint: Path, output: Path) -> Path:
    """Return the input if it is a prediction file, else the predictions of its rows."""
    source = Path(config.input)
    if source.is_file():
        with source.open("rb") as file:
            header = file.readline(1 << 16)
        if b"p_" in header and b"prediction_set" in header:
            return source
    predictions = output.with_suffix(".predictions.csv")
    job = PredictConfig(
        checkpoint=str(checkpoint),
        input=config.input,
        images=config.images,
        output=str(predictions),
        accelerator=config.accelerator,
        overwrite=config.overwrite,
    )
    if predict_file(job):
        print_line(f"rows without a prediction are not used; their reasons: {predictions}")
    return predictions


def _read_own_predictions(file: Path, card: Card, key: str) -> PredictionFile:
    """Read a prediction file; refuse predictions of another checkpoint.

    Its prediction sets must be those of the checkpoint for its probabilities. Probabilities of
    another checkpoint, or raw ones, give other sets.
    """
    table = PredictionFile(file)
    classes, probabilities = table.parse_probabilities()
    sets = table.parse_sets(classes)
    matches = classes == tuple(card.classes)
    if matches and card.conformal:
        predicted = ConformalPredictor(**card.conformal).predict_sets(probabilities)
        agrees = sets is not None and (sets == predicted).all(axis=1).mean() >= AGREEMENT
        matches = bool(agrees)
    if not matches:
        raise InputError(
            f"{key}={file}: not the calibrated predictions of this checkpoint; make them with "
            "predict.py and this checkpoint, without probabilities=raw"
        )
    return table


def _fit_labelled(file: Path, card: Card) -> _Fit:
    before = read_predictions(file, positive=card.positive, allow_one_class=True)
    if before.classes != tuple(card.classes):
        raise InputError(
            f"{file}: the targets are 0 and 1, the classes of the checkpoint are "
            f"{', '.join(card.classes)}; give the diagnosis of each row"
        )
    patients = before.patient_id.astype(str)
    result = fit_adaptation(before.probabilities, before.target, patients)
    adapted = apply_scale(result.state, before.probabilities)
    facts = {
        "method": result.method,
        "losses": result.losses,
        "before": result.before,
        "after": result.after,
        "malignant": int(before.malignant.sum()),
        "malignant_patients": len(np.unique(patients[before.malignant])),
    }
    shares = np.bincount(before.target, minlength=len(before.classes)) / len(before)
    return _Fit(
        facts,
        None if result.method == NONE else result.state,
        shares.tolist(),
        replace(before, probabilities=adapted),
        adapted,
        (before, replace(before, probabilities=result.cross_fitted)),
    )


def _fit_unlabelled(reference: Path, table: PredictionFile, card: Card) -> _Fit:
    """Estimate the class shares of the rows, or refuse another shift.

    If only the shares change, the reference rows remain examples of each class: the decision is
    fitted to them, with their probabilities for the new shares.
    """
    _read_own_predictions(reference, card, "reference")
    known = read_predictions(reference, positive=card.positive)
    classes, probabilities = table.parse_probabilities()
    patients = resolve_patients(table.table).to_numpy(dtype=str)
    rows = (known.probabilities, known.target, known.patient_id.astype(str))
    ood = table.parse_ood()
    if ood is None or known.ood is None:
        raise InputError(
            "without a target, the column ood is needed: from probabilities alone, other images "
            "may pass for another prevalence; label the rows (column target)"
        )
    scores = ood, known.ood
    shift = estimate_shift(probabilities, patients, rows, card.prior["deployed"], ood=scores)
    if not shift.is_plausible:
        rules = from_mapping(Config, card.config).evaluation
        needed = malignant_for_guarantee(rules.sensitivity, rules.confidence)
        raise InputError(
            f"these rows do not fit a change of prevalence alone (p = {shift.p:.3f}): images or "
            "lesions differ from those of validation in other ways. Label rows (column "
            f"target); {needed} patients with malignant lesions can guarantee a sensitivity of "
            f"{rules.sensitivity:g}"
        )
    ends = zip(shift.shares, shift.low, shift.high, strict=True)
    state = shift.state if shift.is_changed else None
    facts = {
        "method": "prevalence" if shift.is_changed else NONE,
        "shares": dict(zip(classes, map(list, ends), strict=True)),
        "p": shift.p,
    }
    shares = shift.shares if shift.is_changed else card.prior["deployed"]
    if state:
        known = replace(known, probabilities=apply_scale(state, known.probabilities))
        probabilities = apply_scale(state, probabilities)
    return _Fit(facts, state, shares, known, probabilities, None)


def _find_reference(config: AdaptConfig, checkpoint: Path) -> Path:
    """Return the predictions of the rows that calibrated a checkpoint of a run folder."""
    folder = checkpoint.parent.parent / "predictions"
    names = [] if config.reference is None else [Path(config.reference)]
    names += [folder / f"{part}.csv" for part in ("calibration", "val")]
    if file := next(filter(Path.is_file, names), None):
        return file
    raise InputError(
        f"{checkpoint}: without a target, the predictions of its validation rows are needed; give "
        "reference=RUN/predictions/val.csv, or label the rows (column target)"
    )


def _to_card(
    card: Card, fit: _Fit, facts: dict[str, Any], rules: EvaluationConfig
) -> dict[str, Any]:
    calibration = replace(Calibration(**card.calibration or {}), site=fit.state)
    threshold, band, conformal, call = fit_rules(fit.decided, rules, fit.shares)
    summary = {**card.summary, "note": NOTE.format(facts["date"])}
    summary.pop("probabilities", None)  # of the old probabilities
    if fit.pair:
        summary["probabilities"] = describe_probabilities(fit.pair[1])
    positive = np.isin(card.classes, card.positive)
    here = pd.DataFrame({"malignancy": fit.here[:, positive].sum(axis=1)})
    return {
        "calibration": asdict(calibration),
        "threshold": asdict(threshold),
        "band": asdict(band),
        "conformal": asdict(conformal),
        "call": to_stored_rule(call),
        "prior": {**card.prior, "deployed": fit.shares},
        "summary": summary,
        "inputs": {**card.inputs, **describe_columns(here, [*here])} if card.inputs else {},
        "adaptation": facts,
    }
