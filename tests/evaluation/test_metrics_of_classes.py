"""Metrics of several classes, against scikit-learn and their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_cases import CLASSES, binary, multiclass, values
from sklearn import metrics as sk

from skinmm.evaluation.metrics import evaluate


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_multiclass_metrics(seed: int) -> None:
    predictions = multiclass(seed)
    target, p = predictions.target, predictions.probabilities
    called = p.argmax(axis=1)
    found = values(predictions)
    malignant = np.isin(target, (0, 2))
    expected = {
        "auroc": sk.roc_auc_score(malignant, p[:, 0] + p[:, 2]),
        "macro_auroc": sk.roc_auc_score(target, p, multi_class="ovr"),
        "auroc_mel": sk.roc_auc_score(target == 2, p[:, 2]),
        "class_accuracy": sk.accuracy_score(target, called),
        "class_balanced_accuracy": sk.balanced_accuracy_score(target, called),
        "macro_f1": sk.f1_score(target, called, average="macro"),
        "class_log_loss": sk.log_loss(target, p),
        "class_brier": np.sum((p - np.eye(4)[target]) ** 2, axis=1).mean(),
        "recall_nv": sk.recall_score(target, called, average=None)[3],
        "precision_bkl": sk.precision_score(target, called, average=None)[1],
        "f1_akiec": sk.f1_score(target, called, average=None)[0],
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    result = evaluate(predictions, resamples=0)
    assert result["confusion"]["counts"] == sk.confusion_matrix(target, called).tolist()
    assert result["support"] == dict(zip(CLASSES, np.bincount(target).tolist(), strict=True))


def test_a_class_without_rows_has_no_metrics_and_no_weight_in_macro_averages() -> None:
    predictions = multiclass(0)
    predictions = predictions.select(predictions.target != 1)
    found = values(predictions)
    assert found["auroc_bkl"] is None
    assert found["recall_bkl"] is None
    known = [found[f"auroc_{name}"] for name in ("akiec", "mel", "nv")]
    assert found["macro_auroc"] == pytest.approx(np.mean([value or 0 for value in known]))


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    scores = np.linspace(0, 1, 30)
    truth = np.zeros(30, dtype=bool)
    truth[[5, 20]] = True
    found = evaluate(binary(scores, truth), resamples=400)["metrics"]["auroc"]
    # A resample misses both positives with probability (28 / 30) ** 30 = 0.126.
    assert found["left_out"] == pytest.approx(400 * 0.126, abs=25)
    assert found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize("lowest", [0.2, 0.6])
def test_balanced_accuracy_adds_the_squares_of_its_parts(lowest: float) -> None:
    """With sensitivity 1 no resample misses a lesion, but the truth may."""
    generator = np.random.default_rng(0)
    positives = np.arange(300) < 50
    scores = np.where(positives, generator.uniform(lowest, 1, 300), generator.uniform(0, 0.9, 300))
    found = evaluate(binary(scores, positives), threshold=0.5, resamples=300)["metrics"]
    assert (found["sensitivity"]["value"] == 1) == (lowest > 0.5)
    entry, parts = found["balanced_accuracy"], [found[n] for n in ("sensitivity", "specificity")]
    for end in ("low", "high"):
        distances = [part[end] - part["value"] for part in parts]
        assert abs(entry[end] - entry["value"]) == pytest.approx(np.hypot(*distances) / 2)
    # A lesion in 20 that is missed costs the prevalence times 1 / 20.
    gain = found["net_benefit_gain"]
    if lowest > 0.5:
        assert gain["value"] - gain["low"] > (1 - found["sensitivity"]["low"]) / 6
