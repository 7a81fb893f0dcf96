"""Fitted heads are scikit-learn's models as arrays, and go through a state dict as any layer."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_config, with_model
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skinmm.config import Component
from skinmm.errors import InputError
from skinmm.models.fusion import Concat, Late, TabularOnly
from skinmm.models.heads import ABSENT, HEADS, LinearHead, TreeHead
from skinmm.models.network import build_network
from skinmm.testing import check_head
from skinmm.training import fitted_heads
from skinmm.training.calibrate import SplitOutputs
from skinmm.training.fitted_heads import (
    TrainingRows,
    cross_validate,
    fit_axes,
    fit_head,
    trees_to_arrays,
)

IMAGE, RECORD = 12, 4


def blobs(classes: int = 2, rows: int = 240, width: int = IMAGE + RECORD) -> SplitOutputs:
    """Classes with other means; two rows a patient."""
    rng = np.random.default_rng(0)
    targets = np.repeat(rng.integers(classes, size=rows // 2), 2)
    means = rng.normal(size=(classes, width))
    features = (means[targets] + 1.5 * rng.normal(size=(rows, width))).astype(np.float32)
    cohort = pd.DataFrame({"patient_id": [f"P{row // 2}" for row in range(rows)]})
    return SplitOutputs(cohort, targets, np.full((rows, classes), 1 / classes), features)


def fitted(name: str, classes: int = 2, outputs: SplitOutputs | None = None, **args: Any) -> Any:
    head: Any = HEADS[name](Concat(IMAGE, RECORD), classes, IMAGE, **args)
    fit_head(head, outputs or blobs(classes), [1 / classes] * classes, seed=0)
    return head


@pytest.mark.parametrize("name", ["neural", "linear"])
def test_a_head_keeps_the_contract(name: str) -> None:
    check_head(HEADS[name])


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_our_trees_predict_as_those_of_scikit_learn(classes: int) -> None:
    given = blobs(classes)
    assert given.features is not None
    head = TreeHead(Concat(0, IMAGE + RECORD), classes, 0)
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=9, random_state=0)
    model.fit(given.features.astype(np.float64), given.targets)
    arrays = trees_to_arrays(model, classes)
    head.load_state_dict(
        {"mean": torch.zeros(0), "axes": torch.zeros(0, 0)}
        | {name: torch.from_numpy(value) for name, value in arrays.items()}
    )
    rows = torch.randn(500, IMAGE + RECORD, generator=torch.Generator().manual_seed(0)).double() * 3
    ours = (head.sum_trees(rows) @ head.spread + head.offset).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(rows.numpy()), rtol=0, atol=1e-12)
    logits = head(rows.float()[None]).double().softmax(dim=2)[0].numpy()  # as `Network.predict`
    np.testing.assert_allclose(
        logits, model.predict_proba(rows.float().double().numpy()), atol=1e-6
    )


@pytest.mark.parametrize("weights", [None, (0.5, 0.5)])
def test_bins_of_all_fits_are_those_of_scikit_learn(weights: tuple[float, ...] | None) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(900, IMAGE + RECORD))
    features[:, -1] = rng.integers(0, 3, 900)
    targets = (rng.random(900) < 1 / (1 + np.exp(-2 * features[:, 0]))).astype(np.int64)
    cohort = pd.DataFrame({"patient_id": np.arange(900).astype(str)})
    given = SplitOutputs(cohort, targets, np.zeros((900, 2)), features.astype(np.float32))
    shares = np.array(weights or np.bincount(targets) / 900)
    head: Any = TreeHead(Concat(0, IMAGE + RECORD), 2, 0, rounds=20)
    chosen = fit_head(head, given, shares.tolist(), seed=0)
    rows = features.astype(np.float32).astype(np.float64)
    binned = fitted_heads.to_bins(rows, fitted_heads.find_bin_edges(rows))
    model = HistGradientBoostingClassifier(
        learning_rate=head.learning_rate,
        max_iter=chosen["rounds"],
        max_leaf_nodes=chosen["max_leaf_nodes"],
        early_stopping=False,
    )
    if weights is None:
        model.fit(rows, targets)  # bins of scikit-learn
        expected = model.predict_proba(rows)
    else:
        model.fit(binned, targets, (shares / (np.bincount(targets) / 900))[targets])
        expected = model.predict_proba(binned)
    ours = head(torch.from_numpy(rows.astype(np.float32))).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_linear_head_is_standardisation_components_and_regression_in_one(classes: int) -> None:
    given = blobs(classes)
    assert given.features is not None
    given.features[:, IMAGE] *= 0.1  # a rare category
    head = HEADS["linear"](Concat(IMAGE, RECORD), classes, IMAGE, components=5)
    assert isinstance(head, LinearHead)
    counts = np.bincount(given.targets)
    chosen = fit_head(head, given, (counts / counts.sum()).tolist(), seed=0)
    image, record = np.split(given.features.astype(np.float64), [IMAGE], axis=1)
    parts = PCA(5).fit_transform(StandardScaler().fit_transform(image)) / np.sqrt(IMAGE)
    rows = np.hstack([parts, StandardScaler().fit_transform(record)])
    model = LogisticRegression(C=chosen["C"], max_iter=2000).fit(rows, given.targets)
    ours = head(torch.from_numpy(given.features)).double().softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(ours, model.predict_proba(rows), atol=2e-4)


@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_a_fitted_head_survives_its_state(name: str) -> None:
    head, new = fitted(name, 3), HEADS[name](Concat(IMAGE, RECORD), 3, IMAGE)
    new.load_state_dict(head.state_dict())
    rows = torch.randn(2, 7, IMAGE + RECORD)
    torch.testing.assert_close(new(rows), head(rows), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in new.parameters())


@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_a_class_without_rows_gets_no_probability(name: str) -> None:
    given = blobs(2)
    given.targets[given.targets == 1] = 2
    given = SplitOutputs(given.cohort, given.targets, np.full((240, 3), 1 / 3), given.features)
    head: Any = HEADS[name](Concat(IMAGE, RECORD), 3, IMAGE)
    fit_head(head, given, [0.5, 0.0, 0.5], seed=0)
    assert given.features is not None
    logits = head(torch.from_numpy(given.features))
    assert float(logits[:, 1].max()) == ABSENT
    assert ((logits.argmax(dim=1).numpy() == given.targets).mean()) > 0.8


def test_weights_move_the_predicted_shares() -> None:
    shares = []
    for malignant in (0.2, 0.8):
        head: Any = HEADS["linear"](Concat(IMAGE, RECORD), 2, IMAGE)
        given = blobs()
        fit_head(head, given, [1 - malignant, malignant], seed=0)
        assert given.features is not None
        weights = np.array([1 - malignant, malignant])[given.targets]
        weights /= np.bincount(given.targets)[given.targets]
        p = head(torch.from_numpy(given.features)).double().softmax(dim=1)[:, 1].detach().numpy()
        shares.append(float(weights @ p))
    np.testing.assert_allclose(shares, [0.2, 0.8], atol=0.02)  # the intercept is not regularised


def test_inner_folds_divide_patients() -> None:
    given = blobs()
    patients = given.cohort["patient_id"].to_numpy(dtype=str)
    assert given.features is not None

    def stages(some: Any, others: np.ndarray) -> Any:
        assert not {*map(bytes, some.features)} & {*map(bytes, others)}
        yield np.zeros((len(others), 2))

    # Both rows of a patient have the same features.
    features = np.repeat(given.features[::2].astype(np.float64), 2, axis=0)
    rows = TrainingRows(features, given.targets, np.ones(240), patients)
    np.testing.assert_allclose(cross_validate(stages, rows, 0), np.log(2))


@pytest.mark.parametrize("name", ["linear", "boosting"])
def test_a_class_of_one_patient_is_fitted_and_leaves_the_log_loss_as_it_is(name: str) -> None:
    given = blobs(3)
    targets = np.where(np.arange(len(given.targets)) < 2, 2, given.targets % 2)
    for classes, of_one_patient in ((2, np.arange(len(targets)) < 2), (3, targets)):
        outputs = SplitOutputs(
            given.cohort, of_one_patient.astype(np.int64), given.probabilities, given.features
        )
        head: Any = HEADS[name](Concat(IMAGE, RECORD), classes, IMAGE)
        facts = fit_head(head, outputs, [1 / classes] * classes, seed=0)
        assert facts["log_loss"] < 3
    assert given.features is not None
    only = SplitOutputs(
        given.cohort[:4], np.array([0, 0, 1, 1]), given.probabilities[:4], given.features[:4]
    )
    with pytest.raises(InputError, match="no inner fold has two classes"):
        fit_head(head, only, [0.5, 0.5, 0.0], seed=0)


def test_axes_are_the_components_of_standardised_features() -> None:
    given = blobs().features
    assert given is not None
    mean, axes = fit_axes(given.astype(np.float64), 3, 0)
    expected = PCA(3).fit_transform(StandardScaler().fit_transform(given)) / np.sqrt(given.shape[1])
    np.testing.assert_allclose(np.abs((given - mean) @ axes.T), np.abs(expected), atol=1e-5)


def test_what_a_fitted_head_cannot_use_is_refused() -> None:
    with pytest.raises(InputError, match="a head of its own; choose fusion=image_only"):
        HEADS["linear"](Late(IMAGE, RECORD), 2, IMAGE)
    with pytest.raises(InputError, match="components=0: must be at least 1"):
        HEADS["boosting"](TabularOnly(0, RECORD), 2, 0, components=0)
    one = blobs()
    one.targets[:] = 0
    with pytest.raises(InputError, match="at least two classes"):
        fitted("linear", outputs=one)
    same = blobs()
    same.cohort["patient_id"] = "P"
    with pytest.raises(InputError, match="at least two patients"):
        fitted("boosting", outputs=same)


def test_a_block_with_weights_is_named() -> None:
    config = with_model(micro_config("gated"), freeze=True)
    config.head, config.tabular = Component("linear"), Component("raw")
    with pytest.raises(InputError, match="fusion has weights to train; choose fusion=image_only"):
        build_network(config, [2, 3], 2, pretrained=False)
    config.fusion = Component("concat")
    build_network(config, [2, 3], 2, pretrained=False)
    config.tabular = Component("mlp")
    with pytest.raises(InputError, match="record has weights to train; set tabular=raw"):
        build_network(config, [2, 3], 2, pretrained=False)
    config.tabular = Component("raw")
    with pytest.raises(InputError, match=r"set model\.freeze=true, or use head=neural"):
        build_network(with_model(config, freeze=False), [2, 3], 2, pretrained=False)
    with pytest.raises(InputError, match=r"set model\.drop_image=0"):
        build_network(with_model(config, drop_image=0.1), [2, 3], 2, pretrained=False)
