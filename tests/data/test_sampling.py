"""The deal of one draw to any number of processes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinmm.data.sampling import (
    SAMPLERS,
    EpochSampler,
    Labels,
    RowSampler,
    Weighted,
    draw_epoch,
    shard,
    shard_evaluation,
)
from skinmm.errors import InputError

WORLDS = (1, 2, 3, 8)

label_lists = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(np.array)
seeds = st.integers(0, 2**32 - 1)
each_choice = pytest.mark.parametrize("make", SAMPLERS.values())


@each_choice
@pytest.mark.parametrize("world", WORLDS)
@given(label_lists, seeds, st.integers(1, 9))
@settings(max_examples=12)
def test_ranks_together_see_the_single_process_draw(
    make: Callable[[], RowSampler], world: int, labels: Labels, seed: int, batch: int
) -> None:
    """No wrapped sampler: every rank that drew for itself would lose and repeat draws."""
    groups = np.arange(len(labels)) // 2
    if len(make().draw(labels, groups, seed, 0)) < world * batch:
        labels = np.resize([0, 1], 2 * world * batch)
        groups = np.arange(len(labels)) // 2

    def keys(rank: int, world_size: int, batch_size: int) -> list[tuple[int, int]]:
        place = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        sampler = EpochSampler(make(), labels, groups, seed=seed, **place)
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
    parts = [shard_evaluation(rows, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    gathered = np.concatenate(parts)
    np.testing.assert_array_equal(np.unique(gathered), np.arange(rows))
    assert len(gathered) - rows < world
    if world == 1:
        np.testing.assert_array_equal(gathered, np.arange(rows))


def test_a_row_drawn_twice_gets_two_augmentation_seeds() -> None:
    labels, groups = np.repeat([0, 1], [190, 10]), np.arange(200)
    rows, augmentation = draw_epoch(Weighted(), labels, groups, 0, 0)
    assert len(set(rows)) < len(rows) == len(augmentation)
    assert len(set(augmentation)) == len(rows)
    assert augmentation.min() >= 0
    assert set(augmentation).isdisjoint(draw_epoch(Weighted(), labels, groups, 0, 1)[1])
    np.testing.assert_array_equal(draw_epoch(Weighted(), labels, groups, 0, 0)[1], augmentation)
