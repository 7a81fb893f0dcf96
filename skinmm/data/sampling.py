"""Which rows an epoch sees, and which process sees them: pure functions of seed, epoch and rank.

A sampler draws once for all processes; `shard` deals that one draw out, so that the union over
ranks equals the single-process draw for any world size (no DistributedSampler around it).
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from skinmm.data.sampling_draws import Draw, Groups, Labels, RowSampler
from skinmm.errors import InputError


def epoch_draw(
    sampler: RowSampler, labels: Labels, groups: Groups, seed: int, epoch: int
) -> tuple[Draw, Draw]:
    """One epoch's rows and one seed per drawn row (for its augmentation), for all processes.

    A row drawn twice gets two seeds: oversampled images differ.
    """
    rows = sampler.draw(labels, groups, seed, epoch)
    states = np.random.SeedSequence((seed, epoch)).generate_state(len(rows), np.uint64)
    seeds = states >> np.uint64(1)  # into int64
    return rows, seeds.astype(np.int64)


def shard(draw: Draw, rank: int, world_size: int, batch_size: int) -> Int[np.ndarray, " share"]:
    """This rank's part of a training draw: its block of every global batch.

    The last, incomplete global batch is left out (another set of rows each epoch), so every rank
    takes equally many steps and the draw does not depend on how a global batch is divided. A draw
    smaller than one global batch is dealt out evenly instead.

    Args:
        draw: one epoch's rows (or their seeds), the same on every rank.
        rank: this process.
        world_size: number of processes.
        batch_size: rows per step and process.

    Raises:
        InputError: fewer rows than processes.
    """
    per_rank = min(batch_size, len(draw) // world_size)
    if per_rank == 0:
        raise InputError(f"{len(draw)} training rows are too few for {world_size} processes")
    whole = len(draw) // (per_rank * world_size) * per_rank * world_size
    return draw[:whole].reshape(-1, world_size, per_rank)[:, rank].ravel()


def evaluation_shard(rows: int, rank: int, world_size: int) -> Int[np.ndarray, " share"]:
    """This rank's rows of an evaluation pass: all ranks equally many, the last row repeated.

    Whoever gathers drops the repeats by row number; every row is counted exactly once.
    """
    padded = -(-rows // world_size) * world_size
    return np.minimum(np.arange(padded), rows - 1)[rank::world_size]


class EpochSampler(Sampler[tuple[int, int]]):
    """The stateful shell: yields (row, augmentation seed) of this rank for the current epoch."""

    def __init__(
        self,
        sampler: RowSampler,
        labels: Labels,
        groups: Groups,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Takes what `epoch_draw` and `shard` need; the epoch is 0 until it is set."""
        self._draw = (sampler, labels, groups, seed)
        self._shard = (rank, world_size, batch_size)
        self._length = len(shard(sampler.draw(labels, groups, seed, 0), *self._shard))
        self.start_at(0, 0)

    def start_at(self, epoch: int, steps: int) -> None:
        """Goes on within an epoch of which a run has made some steps already."""
        self.epoch, self._made = epoch, steps * min(self._shard[2], self._length)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch; only the first one can have been begun."""
        if epoch != self.epoch:
            self.start_at(epoch, 0)

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch."""
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Draws the epoch afresh: what was drawn before changes nothing."""
        drawn = epoch_draw(*self._draw, self.epoch)
        rows, seeds = (shard(part, *self._shard)[self._made :].tolist() for part in drawn)
        yield from zip(rows, seeds, strict=True)
