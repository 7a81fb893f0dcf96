"""Predictions of drawn scores, and their metrics without intervals."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions

CLASSES = ("akiec", "bkl", "mel", "nv")


def binary(
    scores: Float64[np.ndarray, " n"],
    positives: Bool[np.ndarray, " n"],
    patients: Int64[np.ndarray, " n"] | None = None,
) -> Predictions:
    names = np.arange(len(scores)).astype(str)
    return Predictions(
        image_id=names,
        patient_id=names if patients is None else patients.astype(str),
        target=positives.astype(np.int64),
        probabilities=np.column_stack([1 - scores, scores]),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )


def values(predictions: Predictions, **settings: Any) -> dict[str, float | None]:
    result = evaluate(predictions, resamples=0, **settings)
    return {name: entry["value"] for name, entry in result["metrics"].items()}


# Few distinct scores, so that ties, separated classes and single rows are all common.
rows = st.lists(
    st.tuples(st.integers(0, 20).map(lambda k: k / 20), st.booleans()), min_size=1, max_size=40
)


def unzip(
    data: list[tuple[float, bool]],
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    return np.array([score for score, _ in data]), np.array([truth for _, truth in data])


def multiclass(seed: int, n: int = 60, classes: tuple[str, ...] = CLASSES) -> Predictions:
    generator = np.random.default_rng(seed)
    probabilities = np.round(generator.dirichlet(np.ones(len(classes)), size=n), 2) + 0.01
    return Predictions(
        image_id=np.arange(n).astype(str),
        patient_id=generator.integers(0, 20, size=n).astype(str),
        target=generator.integers(0, len(classes), size=n),
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        raw=None,
        classes=classes,
        positive=("akiec", "mel"),
    )
