"""Shapley values of a game: exact from all subsets of a few players, estimated for many."""

from collections.abc import Callable
from math import comb
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

MIN_PAIRS: Final = 64
"""Pairs of an order and its reverse, from which the values of many inputs are estimated."""
Game = Callable[[Bool[np.ndarray, "s inputs"], slice], Float64[np.ndarray, " s"]]
"""Maps subsets of the inputs, and background rows, to the mean probability."""


def compute_shapley_values(
    values: Float64[np.ndarray, " subsets"],
) -> Float64[np.ndarray, " inputs"]:
    """Compute Shapley values from the value of every subset of inputs.

    Args:
        values: value of each of the 2^k subsets; bit i of its index: player i is a member.
    """
    index = np.arange(len(values))
    players = len(values).bit_length() - 1
    sizes = list_subsets(players).sum(axis=1)
    weights = np.array([1 / (players * comb(players - 1, size)) for size in range(players)])
    added = np.zeros(players)
    for player in range(players):
        without = index[index >> player & 1 == 0]
        gain = values[without | 1 << player] - values[without]
        added[player] = weights[sizes[without]] @ gain
    return added


def estimate_shapley_values(
    play: Game, inputs: int, count: int
) -> tuple[float, Float64[np.ndarray, " inputs"], Float64[np.ndarray, " inputs"]]:
    """Estimate Shapley values from random orders of the inputs, each with its reverse.

    The value of an input is its mean gain when the inputs are added one after another (Castro et
    al. 2009, doi:10.1016/j.cor.2008.04.004; pairs: Mitchell et al. 2022, arXiv:2104.12199). Each of
    the `count` background rows has the same number of orders, so that the values and the start add
    up to the prediction without error. All calls draw the same orders.

    Returns:
        Mean probability without any input, values, and their standard errors.
    """
    rng, pairs = np.random.default_rng(0), max(2, -(-MIN_PAIRS // count))
    starts, gains = [], []
    for row in range(count):
        orders = np.array([rng.permutation(inputs) for _ in range(pairs)])
        orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, inputs)
        ranks = orders.argsort(axis=1)
        subsets = ranks[:, None] < np.arange(inputs + 1)[:, None]  # (orders, inputs + 1, inputs)
        values = play(subsets.reshape(-1, inputs), slice(row, row + 1)).reshape(len(orders), -1)
        starts.append(values[0, 0])
        steps = np.take_along_axis(np.diff(values), ranks, axis=1)
        gains.append(steps.reshape(pairs, 2, inputs).mean(axis=1))
    sample = np.stack(gains)  # (background rows, pairs, inputs)
    errors = np.sqrt(sample.var(axis=1, ddof=1).sum(axis=0) / pairs) / count
    return float(np.mean(starts)), sample.mean(axis=(0, 1)), errors


def list_subsets(inputs: int) -> Bool[np.ndarray, "subsets inputs"]:
    """Return all subsets; bit i of the index of a subset: input i is a member."""
    return (np.arange(2**inputs)[:, None] >> np.arange(inputs) & 1).astype(bool)
