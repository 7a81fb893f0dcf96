"""Metrics of patients with several lesions, counted by hand, and of their resamples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prediction_cases import binary, values
from scipy.stats import binomtest

from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import build_statistic

FIELDS = ("image_id", "patient_id", "target", "probabilities", "unit")


def test_rows_are_counted_by_what_they_name() -> None:
    rows = binary(np.arange(4) / 4, np.arange(4) > 1, np.array([0, 7, 7, 3]))
    assert evaluate(rows)["units"] == {"patient": 2, "lesion": 0, "image": 2}
    named = replace(rows, unit=np.array(["lesion", "patient", "patient", "image"]))
    assert evaluate(named)["units"] == {"patient": 2, "lesion": 1, "image": 1}


def patients_with_many_lesions(seed: int) -> Predictions:
    """Return 12 patients with 1 to 40 lesions, a sixth malignant, and tied scores."""
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(12), generator.integers(1, 41, size=12))
    scores = np.round(generator.random(len(patients)), 1)
    rows = binary(scores, generator.random(len(patients)) < 1 / 6, patients)
    return replace(rows, unit=np.full(len(patients), "patient", dtype=object))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_patients_are_counted_by_hand(seed: int) -> None:
    rows = patients_with_many_lesions(seed)
    found, flagged, top, lesions = 0, 0, 0, 0
    for patient in np.unique(rows.patient_id):
        own = rows.select(rows.patient_id == patient)
        scores, malignant = own.malignancy, own.malignant
        found += bool(malignant.any())
        flagged += bool((scores[malignant] >= 0.8).any())
        lesions += int(malignant.sum())
        top += sum((scores >= score).sum() <= 15 for score in scores[malignant])
    measured = values(rows, threshold=0.8)
    assert measured["patient_sensitivity"] == pytest.approx(flagged / found)
    assert measured["top_15_sensitivity"] == pytest.approx(top / lesions)


def test_a_resample_of_patients_has_the_metrics_of_its_patients() -> None:
    rows = patients_with_many_lesions(0)
    codes, patients = patient_codes(rows.patient_id)
    draws = np.random.default_rng(1).multinomial(patients, np.full(patients, 1 / patients), size=3)
    sampled = build_statistic(rows, codes, threshold=0.8)(draws.astype(np.int64))
    for number, draw in enumerate(draws):
        copies = [
            replace(part, patient_id=np.full(len(part), f"{patient}/{copy}", dtype=object))
            for patient, times in enumerate(draw)
            for copy in range(times)
            for part in [rows.select(codes == patient)]
        ]
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in copies]) for name in FIELDS
        }
        copied = values(replace(rows, **columns), threshold=0.8)
        for name in ("patient_sensitivity", "top_15_sensitivity"):
            assert sampled[name][number] == pytest.approx(copied[name])


def test_metrics_of_patients_need_rows_that_name_a_patient() -> None:
    rows = patients_with_many_lesions(0)
    assert "patient_sensitivity" not in values(
        replace(rows, unit=np.full(len(rows), "lesion", dtype=object))
    )
    few = rows.select(np.sort(np.unique(rows.patient_id, return_index=True)[1]))  # one lesion each
    few = replace(few, target=np.arange(len(few)) % 2)
    measured = values(few, threshold=0.8)
    assert measured["patient_sensitivity"] == pytest.approx(measured["sensitivity"])
    assert "top_15_sensitivity" not in measured  # 15 of at most 15 lesions are all of them
    everyone = evaluate(replace(rows, probabilities=np.ones((len(rows), 2)) / 2), resamples=30)
    entry = everyone["metrics"]["patient_sensitivity"]
    exact = binomtest(everyone["malignant_patients"], everyone["malignant_patients"])
    assert entry["value"] == 1
    assert entry["low"] == pytest.approx(exact.proportion_ci(method="exact").low)
