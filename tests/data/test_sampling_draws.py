"""Every sampler against one contract, and against its closed-form probabilities."""

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
    Draw,
    Groups,
    Labels,
    Oversample,
    PatientBalanced,
    RowSampler,
    Shuffle,
    Undersample,
    Weighted,
)
from skinmm.errors import InputError
from skinmm.testing import ContractError, check_sampler

CHOICES: list[Callable[[], RowSampler]] = [
    *SAMPLERS.values(),
    lambda: Weighted(power=0.0),
    lambda: Weighted(power=0.5),
    lambda: Weighted(power=2.0),
    lambda: Undersample(ratio=2.5),
]

label_lists = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(np.array)
seeds = st.integers(0, 2**32 - 1)
each_choice = pytest.mark.parametrize("make", CHOICES)


def imbalanced(*counts: int) -> Labels:
    """Labels with these counts, in no particular order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def patients(labels: Labels) -> Groups:
    """Patients of one to six rows."""
    return np.sort(np.random.default_rng(1).integers(0, max(len(labels) // 3, 1), len(labels)))


def drawn(sampler: RowSampler, labels: Labels, seed: int = 0, epoch: int = 0) -> Draw:
    return sampler.draw(labels, patients(labels), seed, epoch)


@each_choice
@given(label_lists, seeds)
@settings(max_examples=30)
def test_a_draw_is_rows_and_a_function_of_seed_and_epoch(
    make: Callable[[], RowSampler], labels: Labels, seed: int
) -> None:
    rows = drawn(make(), labels, seed, 3)
    assert set(rows) <= set(range(len(labels)))
    np.testing.assert_array_equal(drawn(make(), labels, seed, 3), rows)
    assert len(drawn(make(), labels, seed, 4)) == len(rows)


@each_choice
def test_a_sampler_keeps_the_contract(make: Callable[[], RowSampler]) -> None:
    check_sampler(make)


class Fixed(Shuffle):
    """A sampler that ignores the epoch."""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        return super().draw(labels, groups, seed, 0)


class Secret(Balanced):
    """A sampler that states the shares of the data."""

    def prior(self, labels: Labels) -> np.ndarray:
        return np.bincount(labels) / len(labels)


@pytest.mark.parametrize(("make", "message"), [(Fixed, "draw: two epochs"), (Secret, "prior: ")])
def test_a_sampler_that_breaks_the_contract_is_caught(
    make: Callable[[], RowSampler], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        check_sampler(make)


def inclusion(sampler: RowSampler, labels: Labels) -> np.ndarray:
    """Each row's share of the draws: its class's share, evenly within the class or the patients."""
    within = 1 / np.bincount(labels)[labels]
    if isinstance(sampler, PatientBalanced):
        groups = patients(labels)
        for label in np.unique(labels):
            of_class = labels == label
            _, codes, sizes = np.unique(groups[of_class], return_inverse=True, return_counts=True)
            within[of_class] = 1 / (len(sizes) * sizes[codes])
    return sampler.prior(labels)[labels] * within


@each_choice
def test_rows_are_drawn_as_often_as_the_closed_form_says(make: Callable[[], RowSampler]) -> None:
    labels, sampler = imbalanced(200, 40, 10), make()
    size = len(drawn(sampler, labels))
    # Seeds, as the epochs of one seed depend on each other where a sampler works through the rows.
    draws = [drawn(sampler, labels, seed, seed % 7) for seed in range(-(-10_000 // size))]
    times = np.bincount(np.concatenate(draws), minlength=len(labels))
    expected = inclusion(sampler, labels) * times.sum()
    assert sampler.prior(labels).sum() == pytest.approx(1)
    # Without replacement the counts vary less than the test assumes, so it cannot fail by chance.
    assert chisquare(times, expected).pvalue > 1e-3


def test_the_comparison_sees_patients_that_weigh_by_their_rows() -> None:
    labels = imbalanced(200, 40, 10)
    draws = [drawn(Balanced(), labels, seed) for seed in range(40)]
    times = np.bincount(np.concatenate(draws), minlength=len(labels))
    assert chisquare(times, inclusion(PatientBalanced(), labels) * times.sum()).pvalue < 1e-9


@each_choice
def test_a_sampler_that_changes_the_shares_says_so(make: Callable[[], RowSampler]) -> None:
    labels = imbalanced(90, 10)
    changed = not np.allclose(make().prior(labels), [0.9, 0.1])
    assert bool(make().corrects) == changed


def test_a_class_that_does_not_occur_has_no_share() -> None:
    labels = np.array([0, 2, 2])
    for make in CHOICES:
        assert make().prior(labels)[1] == 0
        assert set(labels[drawn(make(), labels)]) <= {0, 2}


@given(label_lists, seeds)
def test_shuffling_shows_every_row_once(labels: Labels, seed: int) -> None:
    np.testing.assert_array_equal(np.sort(drawn(Shuffle(), labels, seed)), np.arange(len(labels)))


@pytest.mark.parametrize("make", [Balanced, PatientBalanced])
@given(label_lists, seeds, st.integers(1, 4))
@settings(max_examples=30)
def test_balanced_batches_hold_every_class_equally_often(
    make: Callable[[], RowSampler], labels: Labels, seed: int, runs: int
) -> None:
    rows = drawn(make(), labels, seed)
    assert len(rows) == len(labels)
    classes = np.unique(labels)
    size = runs * len(classes)
    for start in range(0, len(rows) - size + 1, size):
        batch = labels[rows[start : start + size]]
        np.testing.assert_array_equal(np.sort(batch), np.repeat(classes, runs))


def test_a_balanced_class_is_used_up_before_a_row_of_it_returns() -> None:
    labels = imbalanced(70, 30)
    times = np.bincount(drawn(Balanced(), labels), minlength=100)
    assert set(times[labels == 0]) <= {0, 1}
    assert set(times[labels == 1]) == {1, 2}


@given(label_lists, seeds)
def test_oversampling_makes_classes_equal_and_leaves_no_row_out(labels: Labels, seed: int) -> None:
    times = np.bincount(drawn(Oversample(), labels, seed), minlength=len(labels))
    assert times.min() >= 1
    for label in np.unique(labels):
        assert times[labels == label].sum() == np.bincount(labels).max()
        assert np.ptp(times[labels == label]) <= 1


@given(label_lists, seeds, st.sampled_from([1.0, 1.5, 3.0]), st.integers(0, 3))
@settings(max_examples=60)
def test_undersampling_shows_every_row_within_its_period(
    labels: Labels, seed: int, ratio: float, round_: int
) -> None:
    sampler, counts = Undersample(ratio), np.bincount(labels)
    sizes = np.minimum(counts, round(ratio * counts[counts > 0].min()))
    for label in np.unique(labels):
        period = -(-counts[label] // sizes[label])
        epochs = range(round_ * period, (round_ + 1) * period)
        draws = [drawn(sampler, labels, seed, epoch) for epoch in epochs]
        parts = [draw[labels[draw] == label] for draw in draws]
        assert all(len(np.unique(part)) == len(part) == sizes[label] for part in parts)
        np.testing.assert_array_equal(
            np.unique(np.concatenate(parts)), np.flatnonzero(labels == label)
        )


def test_an_equal_draw_at_the_cohort_s_prevalence_shifts_the_logit_by_four() -> None:
    labels = imbalanced(9824, 176)
    trained, natural = Balanced().prior(labels)[1], Shuffle().prior(labels)[1]
    assert logit(trained) - logit(natural) == pytest.approx(4.02, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda p=p: Weighted(power=p), r"power=.*0 and 2") for p in (-0.1, 2.5, float("nan"))),
        *((lambda r=r: Undersample(ratio=r), r"ratio=.*1 and 1000") for r in (0.9, float("nan"))),
    ],
)
def test_an_argument_out_of_bounds_is_refused(make: Callable[[], RowSampler], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
