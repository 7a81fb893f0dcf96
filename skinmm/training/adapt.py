"""`skinmm adapt`: fit the calibration and the decision of a checkpoint to the lesions of a site."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from skinmm.config import Config, EvaluationConfig, PredictConfig, from_mapping
from skinmm.config.checkpoints import find_checkpoints
from skinmm.config.commands import AdaptConfig
from skinmm.errors import InputError, print_line, require_new_output
from skinmm.evaluation.adaptation import NONE, fit_ensemble
from skinmm.evaluation.calibration import Calibration, apply_scale
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.drift import describe_columns
from skinmm.evaluation.metrics import describe_probabilities
from skinmm.evaluation.planning import malignant_for_guarantee
from skinmm.evaluation.prediction_files import PredictionFile
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.evaluation.prevalence_shift import estimate_shift
from skinmm.evaluation.thresholds import Threshold, average_thresholds
from skinmm.models.checkpoint import (
    Card,
    CheckpointError,
    load_cards,
    save_ensemble,
    split_ensemble,
)
from skinmm.predict.inputs import has_labels, has_predictions, list_training_names
from skinmm.predict.job import predict_file
from skinmm.predict.writer import require_output_file
from skinmm.report.sites import write_adaptation_page
from skinmm.training.calibrate import fit_rules, to_stored_rule
from skinmm.vocabulary import resolve_patients

SUFFIX: Final = ".ckpt"
MIXED: Final = "mixed"  # different methods for the networks of an ensemble
AGREEMENT: Final = 0.999  # least share of rows with the checkpoint's set; others differ by rounding
NOTE: Final = (
    "The figures are of its test, before its probabilities, threshold and referral were adapted to "
    "a site ({})."
)


class _Fit(NamedTuple):
    """Fitted adaptation to a site.

    Attributes:
        facts: entries of the record.
        states: map of each network, see `fit_map`; None: its probabilities stay as they are.
        shares: of the classes at the site.
        decided: adapted rows that the decision is fitted to.
        here: adapted probabilities of the site.
        pair: rows before and after, each adapted without its patient; None without labels.
    """

    facts: dict[str, Any]
    states: list[dict[str, Any] | None]
    shares: list[float]
    decided: Predictions
    here: Float64[np.ndarray, "n c"]
    pair: tuple[Predictions, Predictions] | None


def adapt(config: AdaptConfig) -> int:
    """Write a checkpoint that is adapted to the rows of a site, and its page."""
    paths, output = find_checkpoints(config.checkpoint), Path(config.output)
    require_new_output("page", Path(config.page), overwrite=config.overwrite, suffix=".html")
    require_output_file("output", output, overwrite=config.overwrite, suffix=SUFFIX)
    cards = [_require_adaptable(path, card) for path in paths for card, _ in load_cards(path)]
    with _predict(config, paths, cards, output) as files:
        fit, facts = _fit(files, cards, config, paths)
        rules = from_mapping(Config, cards[0].config).evaluation
        shared = _to_card(cards[0], fit, facts, rules)
        save_ensemble(paths, output, partial(_to_member, fit, facts), **shared)
    old = average_thresholds([Threshold(**card.threshold or {}) for card in cards])
    thresholds, aim = (old, Threshold(**shared["threshold"])), (rules.sensitivity, rules.confidence)
    notes = write_adaptation_page(Path(config.page), facts, fit.pair, thresholds, aim)
    print_line("\n".join([*notes, f"checkpoint: {output}", f"page: {config.page}"]))
    return 0


def _require_adaptable(path: Path, card: Card) -> Card:
    """Return the card of a calibrated classifier; refuse any other checkpoint."""
    if (task := card.config.get("task", "classification")) != "classification":
        raise CheckpointError(f"{path}: checkpoint of task={task}; adapt a classifier")
    if card.adaptation:
        raise CheckpointError(
            f"{path}: adapted to a site already; adapt the checkpoint that it was made from"
        )
    if not (card.calibration and card.threshold):
        raise CheckpointError(f"{path}: never calibrated; finish the training run first")
    return card


@contextmanager
def _predict(
    config: AdaptConfig, paths: Sequence[Path], cards: Sequence[Card], output: Path
) -> Iterator[list[Path]]:
    """Predict the input with each network; keep these predictions if the adaptation succeeds."""
    if _check_input(config, cards):
        yield [Path(config.input)]
        return
    numbers = [f".{number}" for number in range(len(cards))] if len(cards) > 1 else [""]
    targets = [output.with_suffix(f"{number}.before.csv") for number in numbers]
    for target in targets:
        require_output_file("predictions before", target, overwrite=config.overwrite)
        if target.resolve() == Path(config.input).resolve():
            raise InputError(f"output={output} would replace the input; choose another path")
    with TemporaryDirectory(dir=output.parent) as folder:
        members = [m for path in paths for m in split_ensemble(path, Path(folder))]
        files = [Path(folder, target.name) for target in targets]
        for member, file in zip(members, files, strict=True):
            job = PredictConfig(checkpoint=str(member), input=config.input, output=str(file))
            job.images, job.accelerator = config.images, config.accelerator
            with redirect_stdout(None):  # the line names a temporary file
                predict_file(job)
        try:
            yield files
        except InputError as error:  # of a table that the user has not written
            raise type(error)(str(error).replace(str(files[0]), config.input)) from error
        for file, target in zip(files, targets, strict=True):
            file.replace(target)
            print_line(f"predictions of the old checkpoint: {target}")


def _check_input(config: AdaptConfig, cards: Sequence[Card]) -> bool:
    """Return whether the input has predictions; refuse it, before any image is read."""
    is_predicted = has_predictions(Path(config.input))
    if len(cards) == 1:
        return is_predicted
    if len({(*card.classes, "", *card.positive) for card in cards}) > 1:
        raise InputError("the checkpoints have different classes; adapt them one by one")
    if is_predicted:
        raise InputError(
            f"input={config.input}: contains mean predictions of {len(cards)} networks; give the "
            "table or folder of images instead"
        )
    configs = [from_mapping(Config, card.config) for card in cards]
    if not has_labels(config.input, list_training_names(configs, ("target", "diagnosis"))):
        raise InputError(
            f"input={config.input}: no column target; several networks are adapted with labels "
            "only, or adapt one of them"
        )
    return False


def _fit(
    files: Sequence[Path], cards: Sequence[Card], config: AdaptConfig, paths: Sequence[Path]
) -> tuple[_Fit, dict[str, Any]]:
    """Fit the adaptation to prediction files; return it with its record."""
    pairs = zip(files, cards, strict=True)
    table, *_ = [_read_own_predictions(file, card, "input") for file, card in pairs]
    if {"target", "diagnosis"} & {*table.table.dropna(axis=1, how="all")}:
        fit = _fit_labelled(files, cards)
    else:
        print_line(f"{config.input}: no value of target or diagnosis: adapting without labels")
        fit = _fit_unlabelled(_find_reference(config, paths[0]), table, cards[0])
    source = Path(config.input) if Path(config.input).is_file() else files[0]
    return fit, {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "source": sha256(source.read_bytes()).hexdigest(),
        "checkpoint": ", ".join(sha256(path.read_bytes()).hexdigest() for path in paths),
        "rows": len(table.table),
        "unpredicted": table.unpredicted,
        "patients": int(resolve_patients(table.table).nunique()),
        "unit": str(pd.Series(table.parse_units()).mode()[0]),  # what `patients` counts
        **fit.facts,
    }


def _read_own_predictions(file: Path, card: Card, key: str) -> PredictionFile:
    """Read a prediction file; refuse predictions of another checkpoint.

    The checkpoint must give the same prediction sets for its probabilities. Probabilities of
    another checkpoint, or raw probabilities, give other sets.
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


def _fit_labelled(files: Sequence[Path], cards: Sequence[Card]) -> _Fit:
    """Fit the adaptation of each network to labelled rows, if the mean of all improves."""
    parts = [
        read_predictions(file, positive=card.positive, allow_one_class=True)
        for file, card in zip(files, cards, strict=True)
    ]
    first, classes = parts[0], tuple(cards[0].classes)
    if first.classes != classes:
        raise InputError(
            f"{files[0]}: the targets are 0 and 1, but the checkpoint has the classes "
            f"{', '.join(classes)}; give a column diagnosis"
        )
    if any(not np.array_equal(first.image_id, part.image_id) for part in parts):
        raise InputError("the networks predicted different rows; remove rows that have an error")
    if first.malignant.all():
        raise InputError(
            f"{files[0]}: none of {len(first):,} rows is benign, so the share of malignant lesions "
            "at the site is unknown; label consecutive lesions"
        )
    patients = first.patient_id.astype(str)
    result = fit_ensemble([part.probabilities for part in parts], first.target, patients)
    methods = [fit.method for fit in result.fits]
    facts = {
        "method": methods[0] if len({*methods}) == 1 else MIXED,
        **({"methods": methods} if len(parts) > 1 else {"losses": result.fits[0].losses}),
        **dict(zip(("before", "after"), result.losses, strict=True)),
        "malignant": int(first.malignant.sum()),
        "malignant_patients": len(np.unique(patients[first.malignant])),
    }
    shares = np.bincount(first.target, minlength=len(classes)) / len(first)
    states = [None if fit.method == NONE else fit.state for fit in result.fits]
    before, decided, after = (
        replace(first, probabilities=p)
        for p in (result.before, result.adapted, result.cross_fitted)
    )
    return _Fit(facts, states, shares.tolist(), decided, result.adapted, (before, after))


def _fit_unlabelled(reference: Path, table: PredictionFile, card: Card) -> _Fit:
    """Estimate the class shares of unlabelled rows; refuse any other shift.

    If only the shares change, the reference rows remain examples of each class: the decision is
    fitted to them, with their probabilities for the new shares.
    """
    _read_own_predictions(reference, card, "reference")
    validation = read_predictions(reference, positive=card.positive)
    classes, probabilities = table.parse_probabilities()
    patients = resolve_patients(table.table).to_numpy(dtype=str)
    rows = (validation.probabilities, validation.target, validation.patient_id.astype(str))
    ood = table.parse_ood()
    if ood is None or validation.ood is None:
        raise InputError(
            "without a target, the column ood is needed: probabilities alone do not "
            "distinguish other images from another prevalence; label the rows (column target)"
        )
    scores = ood, validation.ood
    shift = estimate_shift(probabilities, patients, rows, card.prior["deployed"], ood=scores)
    if not shift.is_plausible:
        rules = from_mapping(Config, card.config).evaluation
        needed = malignant_for_guarantee(rules.sensitivity, rules.confidence)
        raise InputError(
            f"a change of prevalence alone does not explain these rows (p = {shift.p:.3f}): images "
            "or lesions also differ from validation in other ways; label rows (column target) with "
            f"at least {needed} patients with malignant lesions to guarantee a sensitivity of "
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
        validation = replace(validation, probabilities=apply_scale(state, validation.probabilities))
        probabilities = apply_scale(state, probabilities)
    return _Fit(facts, [state], shares, validation, probabilities, None)


def _find_reference(config: AdaptConfig, checkpoint: Path) -> Path:
    """Return the predictions of the rows that calibrated a checkpoint of a run folder."""
    folder = checkpoint.parents[1] / "predictions"
    names = [config.reference or folder, folder / "calibration.csv", folder / "val.csv"]
    if file := next(filter(Path.is_file, map(Path, names)), None):
        return file
    raise InputError(
        f"{checkpoint}: without a target, the predictions of its validation rows are needed; give "
        "reference=RUN/predictions/val.csv, or label the rows (column target)"
    )


def _to_card(
    card: Card, fit: _Fit, facts: dict[str, Any], rules: EvaluationConfig
) -> dict[str, Any]:
    """Return the changed entries of the card that all networks share."""
    threshold, band, conformal, call = fit_rules(fit.decided, rules, fit.shares)
    positive = np.isin(card.classes, card.positive)
    here = pd.DataFrame({"malignancy": fit.here[:, positive].sum(axis=1)})
    return {
        "threshold": asdict(threshold),
        "band": asdict(band),
        "conformal": asdict(conformal),
        "call": to_stored_rule(call),
        "inputs": {**card.inputs, **describe_columns(here, [*here])} if card.inputs else {},
        "adaptation": facts,
    }


def _to_member(fit: _Fit, facts: dict[str, Any], number: int, card: Card) -> dict[str, Any]:
    """Return the changed entries of the card of one network."""
    calibration = replace(Calibration(**card.calibration or {}), site=fit.states[number])
    summary = {**card.summary, "note": NOTE.format(facts["date"])}
    summary.pop("probabilities", None)  # of the old probabilities
    if fit.pair:
        summary["probabilities"] = describe_probabilities(fit.pair[1])
    prior = {**card.prior, "deployed": fit.shares}
    return {"calibration": asdict(calibration), "summary": summary, "prior": prior}
