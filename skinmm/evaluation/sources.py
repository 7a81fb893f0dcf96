"""AUROC within sources (centres), and a random-effects summary over sources."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import expit, logit

from skinmm.evaluation import curves
from skinmm.evaluation.curves import CumulativeWeights, Samples, ratio
from skinmm.evaluation.delong import delong_interval
from skinmm.evaluation.intervals import Statistic, student_quantile
from skinmm.evaluation.predictions import Predictions

MIN_SOURCES: Final = 3  # of a random-effects summary


def _rows_by_source(sources: Shaped[np.ndarray, " n"]) -> dict[str, Int64[np.ndarray, " k"]]:
    """Return the row numbers of each source with more than one row, by name."""
    groups = pd.Series(range(len(sources))).groupby(sources)
    return {str(name): rows.to_numpy(np.int64) for name, rows in groups if len(rows) > 1}


class WithinSourceAuroc:
    """Statistic: chance that a malignant row ranks above a benign one of the same source.

    A source that differs from others in its share of malignant rows raises the AUROC of a model
    that recognises the source. Pairs of the same source do not reward this. The value is the mean
    of the AUROCs of the sources, weighted by their numbers of pairs; rows of an unknown source
    (None), and sources with one class, have no pairs. `codes` are the numbers of the patients.
    """

    def __init__(
        self,
        scores: Float64[np.ndarray, " n"],
        positives: Bool[np.ndarray, " n"],
        codes: Int64[np.ndarray, " n"],
        sources: Shaped[np.ndarray, " n"],
    ) -> None:
        self.strata = []  # of each source: patient, truth and levels of its rows by score
        for rows in _rows_by_source(sources).values():
            if 0 < positives[rows].sum() < len(rows):
                rows = rows[np.argsort(scores[rows], kind="stable")]
                levels = curves.find_levels(scores[rows], positives[rows])
                self.strata.append((codes[rows], positives[rows], levels))

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> Samples:
        """Return the value of each resample; NaN without a pair."""
        correct, pairs = np.zeros((2, len(draws)))
        for codes, positives, levels in self.strata:
            cumulative = CumulativeWeights.from_weights(np.take(draws, codes, axis=1), positives)
            malignant = cumulative.positives[:, -1].astype(np.float64)
            count = malignant * (cumulative.rows[:, -1] - malignant)
            auroc = curves.partial_auroc(curves.Curve.from_levels(cumulative, levels), 0.0)
            correct += np.where(count > 0, count * auroc, 0)
            pairs += count
        return ratio(correct, pairs)


def build_source_statistic(
    predictions: Predictions, codes: Int64[np.ndarray, " n"]
) -> Statistic | None:
    """Return the statistic of AUROCs within sources; None with fewer than two sources.

    It has `within_source_auroc` of malignancy and, for several classes,
    `within_source_macro_auroc`, the mean over the classes that have a pair. `codes` are the numbers
    of the rows' patients.
    """
    if predictions.source is None or pd.Series(predictions.source).nunique() <= 1:
        return None
    views = {"within_source_auroc": [(predictions.malignancy, predictions.malignant)]}
    if not predictions.is_binary:
        views["within_source_macro_auroc"] = [
            (predictions.probabilities[:, i], predictions.target == i)
            for i in np.unique(predictions.target).tolist()
        ]
    rankings = {}
    for name, pairs in views.items():
        ranked = [WithinSourceAuroc(*pair, codes, predictions.source) for pair in pairs]
        rankings[name] = [auroc for auroc in ranked if auroc.strata] or ranked[:1]
    return lambda draws: {
        name: np.mean([auroc(draws) for auroc in aurocs], axis=0)
        for name, aurocs in rankings.items()
    }


def summarise_sources(
    predictions: Predictions, *, confidence: float = 0.95
) -> dict[str, Any] | None:
    """Return the AUROC of each source and their random-effects mean; None with fewer than two.

    Returns:
        `aurocs`: for each source `source`, `n`, `positives` and the `delong_interval`;
        `random_effects`: `pool_random_effects` of their logits, transformed back to the AUROC, with
        the names `left_out` of the sources without a standard error; None with fewer than
        `MIN_SOURCES` others.
    """
    groups = {} if predictions.source is None else _rows_by_source(predictions.source)
    if len(groups) <= 1:
        return None
    aurocs: list[dict[str, Any]] = []
    for name, rows in groups.items():
        part = predictions.select(rows)
        auroc = delong_interval(
            part.malignancy, part.malignant, part.patient_id, confidence=confidence
        )
        counts = {"n": len(rows), "positives": int(part.malignant.sum())}
        aurocs.append({"source": name, **counts, **auroc})
    used = [entry for entry in aurocs if entry["standard_error"] and 0 < entry["value"] < 1]
    if len(used) < MIN_SOURCES:
        return {"aurocs": aurocs, "random_effects": None}
    values, errors = (
        np.array([entry[name] for entry in used]) for name in ("value", "standard_error")
    )
    pooled = pool_random_effects(
        logit(values), errors / (values * (1 - values)), confidence=confidence
    )
    scaled = ("value", "low", "high", "prediction_low", "prediction_high")
    left_out = [entry["source"] for entry in aurocs if entry not in used]
    summary = {k: float(expit(v)) if k in scaled else v for k, v in pooled.items()}
    return {"aurocs": aurocs, "random_effects": {**summary, "left_out": left_out}}


def pool_random_effects(
    values: Sequence[float] | Float64[np.ndarray, " k"],
    errors: Sequence[float] | Float64[np.ndarray, " k"],
    *,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Return the random-effects mean of independent estimates, its interval and the heterogeneity.

    The variance between estimates is that of DerSimonian and Laird (1986,
    doi:10.1016/0197-2456(86)90046-2), the interval that of Hartung and Knapp (2001,
    doi:10.1002/sim.791), never narrower than without their factor (Roever et al. 2015,
    doi:10.1186/s12874-015-0091-1), because a few estimates may agree by chance. A further source is
    expected in the prediction interval of Higgins et al. (2009,
    doi:10.1111/j.1467-985X.2008.00552.x).

    Three or more values with positive standard errors are needed. Besides the entries of an
    estimate there are `prediction_low`, `prediction_high`, `tau` (standard deviation between the
    estimates), `i2` (its share of the variance) and `q` (Cochran's).
    """
    y, variance = np.asarray(values, np.float64), np.asarray(errors, np.float64) ** 2
    fixed, freedom = 1 / variance, len(y) - 1
    q = float(fixed @ (y - fixed @ y / fixed.sum()) ** 2)
    scale = float(fixed.sum() - (fixed**2).sum() / fixed.sum())
    tau2 = max(0.0, (q - freedom) / scale)
    weights = 1 / (variance + tau2)
    mean = float(weights @ y / weights.sum())
    factor = max(1.0, float(weights @ (y - mean) ** 2) / freedom)
    error = math.sqrt(factor / float(weights.sum()))
    half = student_quantile(confidence, len(y)) * error
    spread = math.sqrt(tau2 + 1 / float(weights.sum()))
    reach = student_quantile(confidence, len(y) - 1) * spread
    return {
        "value": mean,
        "standard_error": error,
        "low": mean - half,
        "high": mean + half,
        "prediction_low": mean - reach,
        "prediction_high": mean + reach,
        "tau": math.sqrt(tau2),
        "i2": max(0.0, 1 - freedom / q) if q else 0.0,
        "q": q,
    }
