"""Fit a head to the features of training rows: logistic regression or gradient-boosted trees.

The hyper-parameters have the lowest log loss in inner folds, which divide the training patients.
Rows are weighted to the class shares that sampler and loss would train a network with.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from skinmm.config import Config
from skinmm.config.checks import list_changed
from skinmm.errors import InputError
from skinmm.models.heads import ABSENT, FittedHead, LinearHead, TreeHead
from skinmm.training.calibrate import SplitOutputs

STRENGTHS: Final = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths `C` of the regularisation, of which inner folds select one."""
LEAVES: Final = (3, 6, 12)
"""Largest numbers of leaves of a tree, of which inner folds select one."""
BINS: Final = 255  # of a column
FOLDS: Final = 3
EQUAL: Final = 1e-9
_ALLOWED: Final = {
    "augment": ("none",),
    "mix": ("none",),
    "loss": ("cross_entropy", "weighted_cross_entropy"),
}


class TrainingRows(NamedTuple):
    """Rows of reduced features with class index, weight and patient."""

    features: Float64[np.ndarray, "n columns"]
    targets: Int[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"]
    patients: np.ndarray

    def take(self, rows: Int[np.ndarray, " k"]) -> "TrainingRows":
        """Return some of the rows."""
        return TrainingRows(*(values[rows] for values in self))


Stages = Callable[[TrainingRows, Float64[np.ndarray, "k columns"]], Iterator[np.ndarray]]
"""Fit a model to rows, and yield the logits (k, classes) of others, stage by stage."""


def check_head(config: Config) -> None:
    """Raise InputError if a head fitted to features would ignore a setting."""
    if config.head.name == "neural":
        return
    for group, names in _ALLOWED.items():
        if (name := attrgetter(f"{group}.name")(config)) not in names:
            raise InputError(
                f"{group}={name}: not used by head={config.head.name}; "
                f"use {group}={' or '.join(names)}"
            )
    for key, value, _ in list_changed(config, "neural"):
        raise InputError(f"{key}={value}: not used by head={config.head.name}; remove it")


def fit_head(
    head: FittedHead, outputs: SplitOutputs, shares: list[float], seed: int
) -> dict[str, Any]:
    """Fit a head in place to the fused features of training rows.

    The rows of `outputs` are weighted to the `shares` of the classes. The seed is that of the inner
    folds and of large principal component analyses.

    Returns:
        The selected hyper-parameters, and the seconds.
    """
    start = time.perf_counter()
    if outputs.features is None or len(np.unique(outputs.targets)) < 2:  # noqa: PLR2004
        raise InputError("a fitted head needs training rows of at least two classes")
    features = outputs.features.astype(np.float64)
    counts = np.bincount(outputs.targets, minlength=len(shares))
    weights = (np.array(shares) * counts.sum() / np.maximum(counts, 1))[outputs.targets]
    patients = outputs.cohort["patient_id"].to_numpy(dtype=str)
    mean, axes = fit_axes(features[:, : head.image_dim], head.components, seed)
    reduced = (features[:, : head.image_dim] - mean) @ axes.T
    rows = TrainingRows(
        np.hstack([reduced, features[:, head.image_dim :]]), outputs.targets, weights, patients
    )
    fit = _fit_linear if isinstance(head, LinearHead) else _fit_trees
    facts = fit(head, rows, mean, axes, seed)  # type: ignore[arg-type]
    return {**facts, "seconds": round(time.perf_counter() - start, 2)}


def fit_axes(
    features: Float64[np.ndarray, "n dim"], components: int, seed: int
) -> tuple[Float64[np.ndarray, " dim"], Float64[np.ndarray, "k dim"]]:
    """Fit the principal components of standardised features, scaled to a total variance of 1.

    Returns:
        The mean to subtract from features, and the matrix to multiply them with.
    """
    if not features.shape[1]:
        return np.zeros(0), np.zeros((0, 0))
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1
    count = min(components, *features.shape)
    model = PCA(count, svd_solver="auto", random_state=seed).fit((features - mean) / scale)
    return mean, model.components_ / scale / np.sqrt(features.shape[1])


def _fit_linear(
    head: LinearHead, rows: TrainingRows, mean: np.ndarray, axes: np.ndarray, seed: int
) -> dict[str, Any]:
    """Fit a logistic regression; cross-validation selects the strength of its penalty."""
    classes = head.out_features
    # The penalty treats all columns of the record alike; principal components keep their scale.
    centre, scale = np.zeros(rows.features.shape[1]), np.ones(rows.features.shape[1])
    record = rows.features[:, len(axes) :]
    centre[len(axes) :], scale[len(axes) :] = record.mean(axis=0), record.std(axis=0)
    scale[scale == 0] = 1
    rows = rows._replace(features=(rows.features - centre) / scale)

    def fit(strength: float, some: TrainingRows) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(some.features, some.targets, some.weights)
        return spread_outputs(model.coef_, model.intercept_, model.classes_, classes)

    def stages(some: TrainingRows, others: np.ndarray) -> Iterator[np.ndarray]:
        for strength in STRENGTHS:
            weight, bias = fit(strength, some)
            yield others @ weight.T + bias

    losses = cross_validate(stages, rows, seed)
    strength = STRENGTHS[int(np.argmin(losses))]
    weight, bias = fit(strength, rows)
    weight /= scale
    bias -= weight @ centre
    image = weight[:, : len(axes)] @ axes
    state = {
        "weight": np.hstack([image, weight[:, len(axes) :]]),
        "bias": bias - image @ mean if len(axes) else bias,
    }
    head.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return {"C": strength, "log_loss": float(losses.min())}


def _fit_trees(
    head: TreeHead, rows: TrainingRows, mean: np.ndarray, axes: np.ndarray, seed: int
) -> dict[str, Any]:
    """Fit boosted trees; cross-validation selects the number of leaves and of rounds."""
    classes, edges = head.spread.shape[1], find_bin_edges(rows.features)
    # Scikit-learn divides weighted columns into bins a hundred times more slowly, for every model.
    features, rows = rows.features, rows._replace(features=to_bins(rows.features, edges))

    def fit(leaves: int, rounds: int, some: TrainingRows) -> HistGradientBoostingClassifier:
        model = HistGradientBoostingClassifier(
            learning_rate=head.learning_rate,
            max_iter=rounds,
            max_leaf_nodes=leaves,
            min_samples_leaf=max(2, min(20, len(some.targets) // 20)),
            early_stopping=False,
            random_state=seed,
        )
        weights = None if np.ptp(rows.weights) < EQUAL else some.weights
        return model.fit(some.features, some.targets, weights)

    def stages(leaves: int, some: TrainingRows, others: np.ndarray) -> Iterator[np.ndarray]:
        model = fit(leaves, head.rounds, some)
        for values in model.staged_decision_function(others):
            outputs = values.reshape(len(others), -1)
            matrix, offset = spread_outputs(
                np.eye(outputs.shape[1]), np.zeros(outputs.shape[1]), model.classes_, classes
            )
            yield outputs @ matrix.T + offset

    losses = np.array(
        [cross_validate(lambda *a, n=leaves: stages(n, *a), rows, seed) for leaves in LEAVES]
    )
    best, rounds = np.unravel_index(int(np.argmin(losses)), losses.shape)
    model = fit(LEAVES[best], int(rounds) + 1, rows)
    arrays = {"mean": mean, "axes": axes, **trees_to_arrays(model, classes)}
    is_split = arrays["left"] != arrays["right"]
    cuts = zip(arrays["feature"][is_split], arrays["threshold"][is_split].astype(int), strict=True)
    arrays["threshold"][is_split] = [edges[column][number] for column, number in cuts]
    head.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    # The arrays of the trees are not part of scikit-learn's public interface.
    outputs = model.decision_function(rows.features).reshape(len(rows.targets), -1)
    baseline = np.asarray(model._baseline_prediction, np.float64).reshape(1, -1)
    sums = head.sum_trees(torch.from_numpy(features)).numpy() + baseline
    if not np.allclose(sums, outputs, atol=1e-6):
        raise InputError("head=boosting: not available with this version of scikit-learn")
    chosen = {"max_leaf_nodes": LEAVES[best], "rounds": int(rounds) + 1}
    return {**chosen, "log_loss": float(losses.min())}


def find_bin_edges(
    features: Float64[np.ndarray, "n columns"],
) -> list[Float64[np.ndarray, " _"]]:
    """Return the upper edges of all bins but the last of each column, as scikit-learn's trees do.

    Columns of many values have bins of equal numbers of rows, without regard to weights.
    """
    edges, shares = [], np.linspace(0, 100, BINS + 1)[1:-1]
    for column in features.T:
        values = np.unique(column)
        if len(values) > BINS:
            cuts = np.percentile(column, shares, method="averaged_inverted_cdf")
            edges.append(np.unique(cuts))
        else:
            edges.append((values[1:] + values[:-1]) / 2)
    return edges


def to_bins(
    features: Float64[np.ndarray, "n columns"], edges: list[Float64[np.ndarray, " _"]]
) -> Float64[np.ndarray, "n columns"]:
    """Return the number of the bin of each value; a value at an edge is in the bin below."""
    pairs = zip(edges, features.T, strict=True)
    return np.column_stack([np.searchsorted(*pair).astype(np.float64) for pair in pairs])


def cross_validate(stages: Stages, rows: TrainingRows, seed: int) -> Float64[np.ndarray, " stages"]:
    """Return the weighted log loss of each stage in inner folds over patients.

    Rows of a class that the other folds lack do not count: nothing can be learnt of it there.
    """
    folds = min(FOLDS, len(np.unique(rows.patients)))
    if folds < 2:  # noqa: PLR2004
        raise InputError("a fitted head needs training rows of at least two patients")
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
        parts = [*split.split(rows.features, rows.targets, rows.patients)]
    sums, scored = [], 0.0
    for fitted, held_out in parts:
        classes = np.unique(rows.targets[fitted])
        others = rows.take(held_out[np.isin(rows.targets[held_out], classes)])
        if len(classes) < 2 or not len(others.targets):  # noqa: PLR2004
            continue
        at = (np.arange(len(others.targets)), others.targets)
        logits = stages(rows.take(fitted), others.features)
        sums.append([-others.weights @ log_softmax(stage, axis=1)[at] for stage in logits])
        scored += others.weights.sum()
    if not sums:
        raise InputError(
            "a fitted head needs more training patients: no inner fold has two classes"
        )
    return np.sum(sums, axis=0) / scored


def spread_outputs(
    weight: Float64[np.ndarray, "outputs columns"],
    bias: Float64[np.ndarray, " outputs"],
    present: Int[np.ndarray, " present"],
    classes: int,
) -> tuple[Float64[np.ndarray, "classes columns"], Float64[np.ndarray, " classes"]]:
    """Return weights and biases of the logits of all classes.

    Two classes have one output, the log odds of the second; a class without a training row has the
    logit `ABSENT`.
    """
    spread, offset = np.zeros((classes, weight.shape[1])), np.full(classes, ABSENT)
    offset[present] = 0
    of_outputs = present[-len(weight) :]
    spread[of_outputs], offset[of_outputs] = weight, bias
    return spread, offset


def trees_to_arrays(model: HistGradientBoostingClassifier, classes: int) -> dict[str, np.ndarray]:
    """Return the trees of a fitted model as the arrays of `TreeHead`."""
    trees = [tree.nodes for trees_of_round in model._predictors for tree in trees_of_round]
    roots = np.cumsum([0, *(len(nodes) for nodes in trees[:-1])])
    nodes, numbers = np.concatenate(trees), np.arange(sum(map(len, trees)))
    start, is_leaf = np.repeat(roots, [len(tree) for tree in trees]), nodes["is_leaf"] == 1
    outputs = model.n_trees_per_iteration_
    baseline = np.asarray(model._baseline_prediction, np.float64).reshape(-1)
    spread, offset = spread_outputs(np.eye(outputs), baseline, model.classes_, classes)
    return {
        "roots": roots,
        "feature": np.where(is_leaf, 0, nodes["feature_idx"]).astype(np.int64),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "left": np.where(is_leaf, numbers, start + nodes["left"].astype(np.int64)),
        "right": np.where(is_leaf, numbers, start + nodes["right"].astype(np.int64)),
        "value": nodes["value"].astype(np.float64),
        "spread": np.ascontiguousarray(spread.T),
        "offset": offset,
        "depth": np.array([nodes["depth"].max()], np.int64),
    }
