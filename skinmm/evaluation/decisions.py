"""What a threshold does: metrics of the four counts, for many weightings of the rows at once."""

import numpy as np
from jaxtyping import Float64

from skinmm.evaluation.ranking import ratio

Counts = Float64[np.ndarray, " b"]


def decision_metrics(
    hits: Counts,
    called: Counts,
    positives: Counts,
    rows: Counts,
    *,
    threshold: float,
    prevalence: float | None,
) -> dict[str, Float64[np.ndarray, " b"]]:
    """Metrics of calling rows malignant.

    Args:
        hits: malignant and called malignant.
        called: called malignant.
        positives: malignant.
        rows: all.
        threshold: the probability that made the call, for the net benefit.
        prevalence: of the clinic, for `ppv`, `npv` and `number_needed_to_treat`; None: of the data.
    """
    tn = rows - called - positives + hits
    sensitivity, specificity = ratio(hits, positives), ratio(tn, rows - positives)
    share = positives / rows if prevalence is None else np.full_like(rows, prevalence)
    # A class that does not occur has no say, though its sensitivity or specificity is undefined.
    found = np.where(share > 0, share * sensitivity, 0)
    missed = np.where(share > 0, share - found, 0)
    cleared = np.where(share < 1, (1 - share) * specificity, 0)
    alarmed = np.where(share < 1, 1 - share - cleared, 0)
    ppv = ratio(found, found + alarmed)
    return {
        "accuracy": (hits + tn) / rows,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "precision": ratio(hits, called),
        "recall": sensitivity,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": ratio(2 * hits, called + positives),
        "ppv": ppv,
        "npv": ratio(cleared, cleared + missed),
        "number_needed_to_treat": ratio(np.ones_like(ppv), ppv),
        "net_benefit": net_benefit(hits / rows, (called - hits) / rows, threshold),
    }


def net_benefit(
    hits: Float64[np.ndarray, "..."],
    false_alarms: Float64[np.ndarray, "..."],
    threshold: Float64[np.ndarray, "..."] | float,
) -> Float64[np.ndarray, "..."]:
    """Share of hits, less false alarms at the exchange rate that the threshold implies.

    Vickers and Elkin 2006, doi:10.1177/0272989X06295361. At threshold 1 a false alarm costs
    endlessly much: NaN.

    Args:
        hits: true positives over all rows.
        false_alarms: false positives over all rows.
        threshold: in [0, 1].
    """
    inside = np.where(np.less(threshold, 1), threshold, np.nan)
    return hits - false_alarms * inside / (1 - inside)
