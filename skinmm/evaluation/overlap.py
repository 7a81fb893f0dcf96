"""How well masks fit: Dice and Jaccard of every picture, and their means over patients."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped

from skinmm.evaluation.intervals import bootstrap, patient_codes
from skinmm.evaluation.summary import summarise

SEED = 0
Areas = Float64[np.ndarray, " n"]


def overlaps(overlap: Areas, drawn: Areas, true: Areas) -> pd.DataFrame:
    """Dice and Jaccard of pictures; two empty masks fit wholly.

    Args:
        overlap: pixels that are in both masks.
        drawn: pixels of one.
        true: pixels of the other.
    """
    union = drawn + true - overlap
    empty = union == 0
    return pd.DataFrame(
        {
            "dice": np.where(empty, 1.0, 2 * overlap / np.where(empty, 1, drawn + true)),
            "jaccard": np.where(empty, 1.0, overlap / np.where(empty, 1, union)),
        }
    )


def mean_overlaps(
    scores: pd.DataFrame,
    patients: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    confidence: float,
) -> dict[str, Any]:
    """Means over pictures, with bootstrap intervals over patients, as `metrics.json` holds them.

    Args:
        scores: what `overlaps` gave.
        patients: of each row.
        resamples: of the bootstrap; 0: no intervals.
        confidence: of the intervals.
    """
    codes, count = patient_codes(patients)
    rows = np.bincount(codes, minlength=count)
    names = list(map(str, scores))
    sums = {name: np.bincount(codes, scores[name], count) for name in names}

    def means(drawn: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        return {name: drawn @ total / (drawn @ rows) for name, total in sums.items()}

    samples: dict[str, Any] = {name: np.empty(0) for name in names}
    if resamples and count > 1:
        samples = bootstrap(means, count, len(scores), resamples=resamples, seed=SEED)
    metrics = {
        name: summarise(name, float(scores[name].mean()), samples[name], None, confidence, count)
        for name in names
    }
    return {"n": len(scores), "patients": count, "metrics": metrics}
