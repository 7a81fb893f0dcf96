"""`skinmm export precision=int8|fp16`: reduced precision of the image network of an ONNX file.

int8 is static quantisation (Jacob et al. 2018, arXiv:1712.05877): weights per channel, and
activations with the ranges of images from the training part. The layers that change the output most
stay in 32 bits, as few as validation requires. fp16 stores weights in 16 bits: a smaller file, no
faster, because processors calculate in 32 bits. Record, fusion, head, calibration and the
out-of-distribution score always stay in 32 and 64 bits.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Shaped

from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError, print_error
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.referral import SHARE
from skinmm.predict.backends import OOD_SCALE, OnnxBackend
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.predictor import Predictor
from skinmm.predict.quantiser import Quantiser, load_batches, scale_ood, write_half

MAX_AUROC_LOSS: Final = 0.002
MAX_ERROR_GAIN: Final = 0.005
"""Of the expected calibration error."""
MIN_EQUAL: Final = 0.99
"""Share of decisions that stay."""


class Quality(NamedTuple):
    """AUROC, expected calibration error and decisions of an exported file."""

    auroc: float
    ece: float
    decisions: Shaped[np.ndarray, " n"]


def reduce_precision(
    model: CalibratedModel, path: Path, precision: str, root: str | None
) -> dict[str, Any]:
    """Replace an exported file by one of reduced precision; return the cost measured on validation.

    A file that costs more than the limits of this module is refused.
    """
    data = _load_data(model, precision, root)
    expected = compute_scores(model, OnnxBackend(path), data)
    before = measure(model, expected, data)
    with TemporaryDirectory() as folder:
        smaller = Path(folder, "smaller.onnx")
        for layers in _write_candidates(model, path, smaller, precision, data):
            scores = compute_scores(model, OnnxBackend(smaller), data)
            scale = fit_ood_scale(expected[:, -1], scores[:, -1]) if model.ood_detector else 1.0
            after = measure(model, scores, data, scale=scale)
            facts = _compare(before, after) | {"name": precision, "layers_in_32_bits": layers}
            text = describe(facts)
            if is_accepted(facts):
                if model.ood_detector:
                    scale_ood(smaller, scale)
                path.write_bytes(smaller.read_bytes())
                return facts | {OOD_SCALE: scale}
            print_error(f"not accepted: {text}")
    other = "precision=fp16 or " if precision == "int8" else ""
    raise InputError(
        f"precision={precision} costs too much: {text}; at most {MAX_AUROC_LOSS} AUROC and "
        f"{MAX_ERROR_GAIN} calibration error may be lost, {MIN_EQUAL:.0%} of decisions must be "
        f"equal; nothing was written; use {other}precision=fp32"
    )


def is_accepted(facts: dict[str, Any]) -> bool:
    """Return whether the cost is within the limits."""
    losses = [facts[name][1] - facts[name][0] for name in ("auroc", "calibration_error")]
    is_equal = facts["equal_decisions"] >= MIN_EQUAL
    return -losses[0] < MAX_AUROC_LOSS and losses[1] < MAX_ERROR_GAIN and is_equal


def describe(facts: dict[str, Any]) -> str:
    """Return the cost in one line."""
    auroc, ece = (
        "{:.4f} -> {:.4f}".format(*facts[name]) for name in ("auroc", "calibration_error")
    )
    layers = len(facts["layers_in_32_bits"])
    return (
        f"{facts['name']}, {layers} layers in 32 bits: AUROC {auroc}, calibration error {ece}, "
        f"{facts['equal_decisions']:.1%} of {facts['validation_rows']} decisions equal"
    )


def _compare(before: Quality, after: Quality) -> dict[str, Any]:
    return {
        "auroc": [before.auroc, after.auroc],
        "calibration_error": [before.ece, after.ece],
        "equal_decisions": float((before.decisions == after.decisions).mean()),
        "validation_rows": len(before.decisions),
    }


def _load_data(model: CalibratedModel, precision: str, root: str | None) -> LesionData:
    """Return the cohort of a checkpoint, with training and validation rows."""
    setting = f"precision={precision}"
    if "image" not in model.inputs:
        raise InputError(f"{setting}: the checkpoint has no image network; use precision=fp32")
    if model.threshold is None:
        raise InputError(f"{setting} compares decisions, so it needs a calibrated checkpoint")
    config = model.config
    if config.data.fold == "all":
        raise InputError(f"{setting}: an ensemble has no validation part; use one fold")
    if root is not None:
        config = replace(config, data=replace(config.data, root=root))
    data = LesionData(config, model.inputs)
    try:
        data.setup()
    except (InputError, OSError) as error:
        where = f"root={root}: " if root else ""
        raise InputError(
            f"{setting} measures its cost on the checkpoint's cohort, data={config.data.name}, so "
            f"set root=DIR to its folder ({where}{error}), or use precision=fp32"
        ) from error
    if list(data.classes) != list(model.card.classes):
        raise InputError(f"{setting}: cohort and checkpoint have different classes; set root=DIR")
    return data


def compute_scores(
    model: CalibratedModel, backend: OnnxBackend, data: LesionData, part: str = "val"
) -> Float64[np.ndarray, "n width"]:
    """Return the log-probabilities of a part of a cohort, and the unscaled OOD score."""
    outputs = [backend(*batch) for batch in load_batches(data, part)]
    log_probabilities, features = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    detector = model.ood_detector
    ood = detector.score(features) if detector else np.zeros(len(features))
    return np.hstack([log_probabilities.astype(np.float64), ood[:, None]])


def fit_ood_scale(expected: Float64[np.ndarray, " n"], actual: Float64[np.ndarray, " n"]) -> float:
    """Return the factor of the OOD scores of a file that restores their limit.

    The score divides by variances of features, some tiny, so that reduced precision increases it,
    in some networks a hundredfold.
    """
    return float(np.quantile(expected, SHARE) / np.quantile(actual, SHARE))


def measure(
    model: CalibratedModel,
    scores: Float64[np.ndarray, "n width"],
    data: LesionData,
    part: str = "val",
    scale: float = 1.0,
) -> Quality:
    """Evaluate the scores of a part of a cohort; `scale` multiplies the OOD score."""
    scores = np.hstack([scores[:, :-1], scale * scores[:, -1:]])
    predictor = Predictor([model])
    output = model.calibrate(scores)
    probabilities = output.calibrated
    malignancy = probabilities[:, model.positive].sum(axis=1)
    rows = data.rows(part)
    cohort = data.cohort.iloc[rows]
    predictions = Predictions(
        cohort["image_id"].to_numpy(object),
        cohort["patient_id"].to_numpy(object),
        data.targets[rows],
        probabilities,
        None,
        tuple(model.card.classes),
        tuple(model.card.positive),
    )
    metrics = evaluate(predictions, resamples=0)["metrics"]
    called = malignancy >= (predictor.threshold or 0)
    decisions = predictor.decide(called, output)
    return Quality(metrics["auroc"]["value"], metrics["ece"]["value"], decisions)


def _write_candidates(
    model: CalibratedModel, path: Path, smaller: Path, precision: str, data: LesionData
) -> Iterator[list[str]]:
    """Write files with an increasing number of 32-bit layers; yield the names of these layers."""
    if precision == "fp16":
        write_half(path, smaller)
        yield []
        return
    quantiser = Quantiser(path, smaller, model, data)
    quantiser.write()
    yield []
    ranking = quantiser.rank_layers()
    count = 1
    while count <= len(ranking) // 2:
        quantiser.write(exclude=ranking[:count])
        yield ranking[:count]
        count *= 2
