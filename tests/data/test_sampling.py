"""Every sampler against one contract, and the deal of one draw to any number of processes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import chisquare

from skinmm.data.sampling import (
    SAMPLERS,
    Balanced,
    EpochSampler,
    Labels,
    RowSampler,
    Shuffle,
    Weighted,
    epoch_draw,
    evaluation_shard,
    shard,
)
from skinmm.errors import InputError

WORLDS = (1, 2, 3, 8)
CHOICES: list[Callable[[], RowSampler]] = [
    *SAMPLERS.values(),
    lambda: Weighted(power=0.0),
    lambda: Weighted(power=0.5),
    lambda: Weighted(power=2.0),
]

label_lists = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(np.array)
seeds = st.integers(0, 2**32 - 1)
each_choice = pytest.mark.parametrize("make", CHOICES)


def imbalanced(*counts: int) -> Labels:
    """Labels with these counts, in no particular order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@each_choice
@given(label_lists, seeds)
@settings(max_examples=30)
def test_a_draw_is_rows_and_a_function_of_seed_and_epoch(
    make: Callable[[], RowSampler], labels: Labels, seed: int
) -> None:
    rows, augmentation = epoch_draw(make(), labels, seed, 3)
    assert len(rows) == len(augmentation) == len(labels)
    assert set(rows) <= set(range(len(labels)))
    again = epoch_draw(make(), labels, seed, 3)
    np.testing.assert_array_equal(again, (rows, augmentation))


@each_choice
def test_epochs_and_seeds_draw_differently(make: Callable[[], RowSampler]) -> None:
    labels = imbalanced(90, 10)
    draws = {
        tuple(epoch_draw(make(), labels, seed, epoch)[0]) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(draws) == 4


@each_choice
def test_rows_are_drawn_as_often_as_the_prior_says(make: Callable[[], RowSampler]) -> None:
    labels, epochs = imbalanced(200, 40, 10), 40
    sampler = make()
    draws = [epoch_draw(sampler, labels, 0, epoch)[0] for epoch in range(epochs)]
    drawn = np.bincount(np.concatenate(draws), minlength=len(labels))
    inclusion = sampler.prior(labels)[labels] / np.bincount(labels)[labels]
    assert sampler.prior(labels).sum() == pytest.approx(1)
    # Without replacement the counts vary less than the test assumes, so it cannot fail by chance.
    assert chisquare(drawn, inclusion * len(labels) * epochs).pvalue > 1e-3


@each_choice
def test_a_sampler_that_changes_the_shares_says_so(make: Callable[[], RowSampler]) -> None:
    labels = imbalanced(90, 10)
    changed = not np.allclose(make().prior(labels), [0.9, 0.1])
    assert bool(make().corrects) == changed


def test_a_class_that_does_not_occur_has_no_share() -> None:
    labels = np.array([0, 2, 2])
    for make in CHOICES:
        assert make().prior(labels)[1] == 0


@given(label_lists, seeds)
def test_shuffling_shows_every_row_once(labels: Labels, seed: int) -> None:
    rows, _ = epoch_draw(Shuffle(), labels, seed, 0)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(labels)))


@given(label_lists, seeds, st.integers(1, 4))
def test_balanced_batches_hold_every_class_equally_often(
    labels: Labels, seed: int, runs: int
) -> None:
    rows, _ = epoch_draw(Balanced(), labels, seed, 0)
    classes = np.unique(labels)
    size = runs * len(classes)
    for start in range(0, len(rows) - size + 1, size):
        batch = labels[rows[start : start + size]]
        np.testing.assert_array_equal(np.sort(batch), np.repeat(classes, runs))


def test_a_balanced_class_is_used_up_before_a_row_of_it_returns() -> None:
    labels = imbalanced(70, 30)
    rows, _ = epoch_draw(Balanced(), labels, 0, 0)
    times = np.bincount(rows, minlength=100)
    assert set(times[labels == 0]) <= {0, 1}
    assert set(times[labels == 1]) == {1, 2}


def test_an_equal_draw_at_the_cohort_s_prevalence_shifts_the_logit_by_four() -> None:
    labels = imbalanced(9824, 176)
    trained, natural = Balanced().prior(labels)[1], Shuffle().prior(labels)[1]
    assert logit(trained) - logit(natural) == pytest.approx(4.02, abs=0.01)


@pytest.mark.parametrize("power", [-0.1, 2.5, float("nan")])
def test_a_power_out_of_bounds_is_refused(power: float) -> None:
    with pytest.raises(InputError, match=r"power=.*between 0 and 2"):
        Weighted(power=power)


@each_choice
@pytest.mark.parametrize("world", WORLDS)
@given(label_lists, seeds, st.integers(1, 9))
@settings(max_examples=12)
def test_ranks_together_see_the_single_process_draw(
    make: Callable[[], RowSampler], world: int, labels: Labels, seed: int, batch: int
) -> None:
    """No wrapped sampler: every rank that drew for itself would lose and repeat draws."""
    if len(labels) < world * batch:
        labels = np.resize(labels, world * batch)

    def keys(rank: int, world_size: int, batch_size: int) -> list[tuple[int, int]]:
        place = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        sampler = EpochSampler(make(), labels, seed=seed, **place)
        sampler.set_epoch(2)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    ranks = [keys(rank, world, batch) for rank in range(world)]
    steps = [
        part[start : start + batch] for start in range(0, len(ranks[0]), batch) for part in ranks
    ]
    assert [key for step in steps for key in step] == keys(0, 1, world * batch)


@given(st.integers(1, 200), st.sampled_from(WORLDS), st.integers(1, 64))
def test_ranks_take_equally_many_rows_and_lose_less_than_a_global_batch(
    rows: int, world: int, batch: int
) -> None:
    draw = np.arange(rows)
    if rows < world:
        with pytest.raises(InputError, match=f"{rows} training rows are too few for {world} proc"):
            shard(draw, 0, world, batch)
        return
    parts = [shard(draw, rank, world, batch) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    taken = np.sort(np.concatenate(parts))
    np.testing.assert_array_equal(taken, draw[: len(taken)])
    assert rows - len(taken) < max(world, min(world * batch, rows))


@given(st.integers(1, 300), st.sampled_from(WORLDS))
def test_evaluation_sees_every_row_once_after_the_repeats_are_dropped(
    rows: int, world: int
) -> None:
    """Padding by repeated rows biases metrics unless they are dropped by number."""
    parts = [evaluation_shard(rows, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    gathered = np.concatenate(parts)
    np.testing.assert_array_equal(np.unique(gathered), np.arange(rows))
    assert len(gathered) - rows < world
    if world == 1:
        np.testing.assert_array_equal(gathered, np.arange(rows))


def test_a_row_drawn_twice_gets_two_augmentation_seeds() -> None:
    rows, augmentation = epoch_draw(Weighted(), imbalanced(190, 10), 0, 0)
    assert len(set(rows)) < len(rows)
    assert len(set(augmentation)) == len(rows)
    assert augmentation.min() >= 0
    assert set(augmentation).isdisjoint(epoch_draw(Weighted(), imbalanced(190, 10), 0, 1)[1])
