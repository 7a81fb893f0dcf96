"""The AUROC within sources against a count of pairs; the random-effects mean against a paper."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jaxtyping import Bool, Float64, Int64, Shaped
from sklearn.metrics import roc_auc_score

from skinmm.evaluation.comparison import compare
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import (
    BINARY,
    Predictions,
    read_predictions,
    write_predictions,
)
from skinmm.evaluation.sources import WithinSourceAuroc, pool_random_effects, summarise_sources

# Vaccinated cases, vaccinated others, control cases, control others of 13 trials of the vaccine BCG
# (Colditz et al. 1994, doi:10.1001/jama.1994.03510330076038), a standard example of meta-analysis.
TRIALS = np.array(
    [
        *([4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619]),
        *([33, 5036, 47, 5761], [180, 1361, 372, 1079], [8, 2537, 10, 619]),
        *([505, 87886, 499, 87892], [29, 7470, 45, 7232], [17, 1699, 65, 1600]),
        *([186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825]),
    ]
)


def count_pairs(
    scores: Float64[np.ndarray, " n"],
    malignant: Bool[np.ndarray, " n"],
    sources: Shaped[np.ndarray, " n"],
    weights: Int64[np.ndarray, " n"],
) -> float:
    """Return the share of correctly ranked pairs of the same source, one pair after the other."""
    correct = pairs = 0.0
    for i in np.flatnonzero(malignant):
        for j in np.flatnonzero(~malignant):
            if sources[i] is not None and sources[i] == sources[j]:
                weight = weights[i] * weights[j]
                correct += weight * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
                pairs += weight
    return correct / pairs


def make_predictions(rows: int = 80, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    sources = rng.choice(np.array(["a", "b", "c", None], object), rows, p=[0.5, 0.3, 0.1, 0.1])
    share = np.select([sources == "a", sources == "b"], [0.2, 0.6], 0.0)
    malignant = rng.random(rows) < share
    scores = np.round(np.clip(0.3 * malignant + 0.3 * share + 0.5 * rng.random(rows), 0, 1), 2)
    return Predictions(
        image_id=np.array([f"I{row}" for row in range(rows)], object),
        patient_id=np.array([f"P{row // 2}" for row in range(rows)], object),
        target=malignant.astype(np.int64),
        probabilities=np.stack([1 - scores, scores], axis=1),
        raw=None,
        classes=BINARY,
        positive=("malignant",),
        source=sources,
    )


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_one_source_are_counted(seed: int) -> None:
    rows = make_predictions(seed=seed)
    assert rows.source is not None
    codes = np.arange(len(rows)) // 2
    statistic = WithinSourceAuroc(rows.malignancy, rows.malignant, codes, rows.source)
    draws = np.random.default_rng(seed).integers(0, 3, size=(4, codes.max() + 1))
    expected = [
        count_pairs(rows.malignancy, rows.malignant, rows.source, weights[codes])
        for weights in draws
    ]
    assert statistic(draws) == pytest.approx(expected)


def test_the_source_alone_ranks_nothing_within_sources() -> None:
    rows = make_predictions(400)
    score = (
        pd.Series(rows.malignant)
        .groupby(pd.Series(rows.source))
        .transform("mean")
        .fillna(0)
        .to_numpy()
    )
    rows = replace(rows, probabilities=np.stack([1 - score, score], axis=1))
    metrics = evaluate(rows, resamples=50)["metrics"]
    assert metrics["auroc"]["value"] > 0.7
    assert metrics["within_source_auroc"]["value"] == pytest.approx(0.5)


def test_one_source_has_no_auroc_within_sources() -> None:
    rows = make_predictions()
    one = replace(rows, source=pd.Series(rows.source).replace(["b", "c"], None).to_numpy(object))
    for other in (one, replace(rows, source=None)):
        measured = evaluate(other, resamples=0)
        assert "within_source_auroc" not in measured["metrics"]
        assert measured["sources"] is None


def test_a_score_of_the_source_wins_over_all_pairs_and_not_within_sources() -> None:
    camera = make_predictions(400)  # adds to each score 0.3 times the share of the source
    shift = pd.Series(camera.source).map({"a": 0.06, "b": 0.18}).fillna(0).to_numpy()
    scores = np.round(camera.malignancy - shift, 2)
    plain = replace(camera, probabilities=np.stack([1 - scores, scores], axis=1))
    result = compare({"camera": camera, "plain": plain}, resamples=200)
    metrics = result["pairs"][0]["metrics"]
    assert metrics["auroc"]["low"] > 0
    same = {k: metrics["within_source_auroc"][k] for k in ("difference", "low", "high", "p")}
    assert same == pytest.approx({"difference": 0, "low": 0, "high": 0, "p": 1}, abs=1e-9)
    value = evaluate(plain, resamples=0)["metrics"]["within_source_auroc"]["value"]
    assert result["systems"]["plain"]["within_source_auroc"]["value"] == pytest.approx(value)
    assert plain.source is not None
    other = replace(plain, source=np.roll(plain.source, 1))  # the files disagree
    result = compare({"camera": camera, "other": other}, resamples=20)
    assert "within_source_auroc" not in result["pairs"][0]["metrics"]


def test_every_class_is_ranked_within_sources() -> None:
    rng = np.random.default_rng(0)
    target, source = (
        rng.integers(3, size=300),
        np.array(["a", "b"], object)[rng.integers(2, size=300)],
    )
    probabilities = rng.dirichlet(np.ones(3), 300) / 2 + np.eye(3)[target] / 2
    ids = np.arange(300).astype(str)
    rows = Predictions(
        ids, ids, target, probabilities, None, ("mel", "nv", "bkl"), ("mel",), source=source
    )
    value = evaluate(rows, resamples=0)["metrics"]["within_source_macro_auroc"]["value"]
    pairs = [
        (int(hit.sum() * (~hit).sum()), roc_auc_score(hit, probabilities[source == name, label]))
        for label in range(3)
        for name in ("a", "b")
        for hit in [target[source == name] == label]
    ]
    means = [
        np.average([a for _, a in pairs[i : i + 2]], weights=[n for n, _ in pairs[i : i + 2]])
        for i in (0, 2, 4)
    ]
    assert value == pytest.approx(np.mean(means))


def test_sources_are_written_and_read(tmp_path: Path) -> None:
    rows = make_predictions()
    write_predictions(tmp_path / "p.csv", rows)
    again = read_predictions(tmp_path / "p.csv")
    assert again.source is not None
    assert rows.source is not None
    assert again.source.tolist() == rows.source.tolist()
    write_predictions(tmp_path / "p.csv", replace(rows, source=None))
    assert read_predictions(tmp_path / "p.csv").source is None
    labels = pd.DataFrame(
        {"image": rows.image_id, "target": rows.target, "attribution": rows.source}
    )
    labels.to_csv(tmp_path / "labels.csv", index=False)
    joined = read_predictions(tmp_path / "p.csv", tmp_path / "labels.csv")
    assert joined.source is not None
    assert joined.source.tolist() == rows.source.tolist()


def test_the_random_effects_mean_is_that_of_a_published_example() -> None:
    """Log risk ratios; figures of the R package metafor (Viechtbauer 2010), method DL."""
    cases, others = TRIALS[:, ::2], TRIALS[:, 1::2]
    risks = np.log(cases / (cases + others))
    errors = np.sqrt((1 / cases - 1 / (cases + others)).sum(axis=1))
    pooled = pool_random_effects(risks[:, 0] - risks[:, 1], errors)
    assert pooled["value"] == pytest.approx(-0.7141, abs=5e-5)
    assert pooled["q"] == pytest.approx(152.233, abs=5e-4)
    assert pooled["tau"] ** 2 == pytest.approx(0.3088, abs=5e-5)
    assert pooled["i2"] == pytest.approx(0.9212, abs=5e-5)


def test_estimates_that_agree_have_the_interval_of_their_pooled_error() -> None:
    """Without heterogeneity the mean is that of equal weights, with Student's quantile."""
    pooled = pool_random_effects([0.2] * 4, [0.1] * 4)
    assert pooled["tau"] == pooled["i2"] == 0
    assert (pooled["value"], pooled["standard_error"]) == pytest.approx((0.2, 0.05))
    assert pooled["high"] - 0.2 == pytest.approx(3.182446 * 0.05)
    assert pooled["prediction_high"] - 0.2 == pytest.approx(4.302653 * 0.05)


def test_a_summary_needs_three_sources_with_both_classes() -> None:
    rows = make_predictions(400)
    summary = summarise_sources(rows)
    assert summary is not None
    assert [entry["source"] for entry in summary["aurocs"]] == ["a", "b", "c"]
    assert summary["random_effects"] is None, "c has no malignant row"
    target = rows.target.copy()
    target[np.flatnonzero(rows.source == "c")[::2]] = 1
    summary = summarise_sources(replace(rows, target=target))
    assert summary is not None
    mean = summary["random_effects"]
    assert mean["left_out"] == []
    values = [entry["value"] for entry in summary["aurocs"]]
    assert min(values) < mean["value"] < max(values)
    assert 0 <= mean["prediction_low"] <= mean["low"] < mean["high"] <= mean["prediction_high"] <= 1
