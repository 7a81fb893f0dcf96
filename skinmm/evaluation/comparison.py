"""Whether one system is better than another, on the same rows."""

from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64

from skinmm.errors import InputError
from skinmm.evaluation.delong import delong_test
from skinmm.evaluation.intervals import (
    bootstrap,
    holm,
    independent_units,
    patient_codes,
    percentile_interval,
    skewness,
    summarise,
)
from skinmm.evaluation.metrics import DEFAULT_THRESHOLD, MalignancyMetrics
from skinmm.evaluation.predictions import Predictions


def compare(
    files: Mapping[str, Predictions],
    *,
    thresholds: Mapping[str, float] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    against: Collection[str] = (),
) -> dict[str, Any]:
    """Compares the probabilities of malignancy of several systems, each pair on the same draws.

    Rows are joined by image; those that a file lacks are left out of all and counted. The p-value
    of a difference is twice the share of resamples (of patients, as in `evaluate`) on the far side
    of zero, and at least 2 / (resamples + 1). Holm's adjustment is over the pairs, per metric: it
    does not pay for looking at many metrics.

    Args:
        files: name -> predictions, two at least; binary and multi-class may meet.
        thresholds: name -> decision threshold; 0.5 where not given.
        resamples: of patients.
        confidence: of the intervals.
        seed: of the draws.
        against: compare pairs with one of these only, and adjust for no others; empty: all.

    Returns:
        Plain data: `n`, `patients`, `positives`, `left_out` (name -> rows), `systems` (name ->
        metric -> value, low, high, left_out), `pairs` (each `a`, `b`, `metrics`: name ->
        difference a - b, low, high, p, p_holm, left_out; and `delong`, of the AUROC).

    Raises:
        InputError: fewer than two files, no common row, or rows whose truth differs.
    """
    joined = _join(files)
    first = next(iter(joined.values()))
    codes, patients = patient_codes(first.patient_id)
    units = independent_units(codes, first.malignant)
    values, samples, systems = {}, {}, {}
    for name, rows in joined.items():
        threshold = (thresholds or {}).get(name, DEFAULT_THRESHOLD)
        metrics = MalignancyMetrics(rows.malignancy, rows.malignant, codes, threshold=threshold)
        everyone = metrics(np.ones((1, patients), dtype=np.int64))
        values[name] = {key: float(value[0]) for key, value in everyone.items()}
        samples[name] = bootstrap(metrics, patients, len(codes), resamples=resamples, seed=seed)
        skews = skewness(metrics, patients, len(codes))
        systems[name] = {
            key: summarise(key, value, samples[name][key], skews[key], confidence, units)
            for key, value in values[name].items()
        }
    return {
        "n": len(first),
        "patients": patients,
        "positives": int(first.malignant.sum()),
        "left_out": {name: len(files[name]) - len(first) for name in files},
        "systems": systems,
        "pairs": _pairs(joined, values, samples, confidence, units, against),
    }


def _pairs(
    joined: Mapping[str, Predictions],
    values: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, Float64[np.ndarray, " r"]]],
    confidence: float,
    units: int,
    against: Collection[str],
) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(joined, 2):
        if against and not {a, b} & {*against}:
            continue
        one, other = joined[a], joined[b]
        pairs.append(
            {
                "a": a,
                "b": b,
                "metrics": {
                    key: _difference(
                        value - values[b][key], samples[a][key] - samples[b][key], confidence, units
                    )
                    for key, value in values[a].items()
                },
                "delong": delong_test(
                    one.malignancy,
                    other.malignancy,
                    one.malignant,
                    one.patient_id,
                    confidence=confidence,
                ),
            }
        )
    for key in next(iter(values.values())):
        entries: list[dict[str, Any]] = [pair["metrics"][key] for pair in pairs]
        known = [entry for entry in entries if entry["p"] is not None]
        for entry, adjusted in zip(known, holm([entry["p"] for entry in known]), strict=True):
            entry["p_holm"] = adjusted
    return pairs


def _difference(
    value: float, samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> dict[str, float | int | None]:
    low, high, left_out = percentile_interval(samples, confidence, units)
    result = {"difference": None, "low": None, "high": None, "p": None, "p_holm": None}
    if np.isnan(value) or low is None:
        return {**result, "left_out": left_out}
    known = len(samples) - left_out
    far = min(np.sum(samples <= 0), np.sum(samples >= 0))
    p = min(1.0, 2 * (float(far) + 1) / (known + 1))
    return {**result, "difference": value, "low": low, "high": high, "p": p, "left_out": left_out}


def _join(files: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The rows that all files have, in the order of the first."""
    if len(files) <= 1:
        raise InputError(f"comparing needs two prediction files or more, not {len(files)}")
    common = set.intersection(*(set(map(str, part.image_id)) for part in files.values()))
    if not common:
        raise InputError(f"{', '.join(files)} have no image in common")
    names = [name for name in map(str, next(iter(files.values())).image_id) if name in common]
    joined = {}
    for name, part in files.items():
        places = {image: row for row, image in enumerate(map(str, part.image_id))}
        joined[name] = part.select(np.array([places[image] for image in names]))
    first, *others = joined
    for other in others:
        differs = joined[first].malignant != joined[other].malignant
        if differs.any():
            raise InputError(
                f"image {names[int(np.argmax(differs))]} is malignant in one of {first} and "
                f"{other} and benign in the other; {int(differs.sum())} rows differ"
            )
    return joined
