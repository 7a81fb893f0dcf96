"""Which rows an epoch sees, and which process sees them: pure functions of seed, epoch and rank.

A sampler draws once for all processes; `shard` deals that one draw out, so that the union over
ranks equals the single-process draw for any world size (no DistributedSampler around it).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch.utils.data import Sampler

from skinmm.errors import InputError

Labels = Int[np.ndarray, " rows"]
Draw = Int[np.ndarray, " drawn"]
Shares = Float[np.ndarray, " classes"]

STRONGEST_POWER: Final = 2.0


@runtime_checkable
class RowSampler(Protocol):
    """What every entry of `SAMPLERS` answers."""

    @property
    def corrects(self) -> str:
        """Its name where it changes the class shares, else empty: two corrections are too many."""

    def draw(self, labels: Labels, rng: np.random.Generator) -> Draw:
        """One epoch's row numbers, in order."""

    def prior(self, labels: Labels) -> Shares:
        """Each class's expected share of a draw, for the correction of probabilities."""


@dataclass(frozen=True)
class Shuffle:
    """Every row once, in random order."""

    corrects: ClassVar[str] = ""

    def draw(self, labels: Labels, rng: np.random.Generator) -> Draw:
        """A permutation."""
        return rng.permutation(len(labels))

    def prior(self, labels: Labels) -> Shares:
        """The classes' own shares."""
        return np.bincount(labels) / len(labels)


@dataclass(frozen=True)
class Weighted:
    """Draws with replacement, a row's weight its class's count to the power -`power`.

    Attributes:
        power: 0 draws as the data are, 1 draws every class equally often; at most 2.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a power out of bounds."""
        if not 0 <= self.power <= STRONGEST_POWER:
            raise InputError(
                f"sampler argument power={self.power}: must be between 0 and {STRONGEST_POWER:g}"
            )

    @property
    def corrects(self) -> str:
        """Nothing where the power is 0."""
        return "weighted sampler" if self.power else ""

    def draw(self, labels: Labels, rng: np.random.Generator) -> Draw:
        """As many rows as the data have."""
        weights = (np.bincount(labels)[labels] / len(labels)) ** -self.power
        return rng.choice(len(labels), len(labels), p=weights / weights.sum())

    def prior(self, labels: Labels) -> Shares:
        """A class's count to the power 1 - `power`, over the sum of these."""
        counts = np.bincount(labels).astype(float)
        share = np.where(counts > 0, np.maximum(counts, 1) ** (1 - self.power), 0)
        return share / share.sum()


@dataclass(frozen=True)
class Balanced:
    """Every class once in every run of as many rows as there are classes.

    The draw has as many rows as the data; a class is permuted afresh each time it is used up.
    """

    corrects: ClassVar[str] = "balanced sampler"

    def draw(self, labels: Labels, rng: np.random.Generator) -> Draw:
        """Runs that hold each class once, in random order within the run."""
        classes = np.unique(labels)
        runs = -(-len(labels) // len(classes))
        columns = [_cycled(np.flatnonzero(labels == label), runs, rng) for label in classes]
        return rng.permuted(np.stack(columns, axis=1), axis=1).ravel()[: len(labels)]

    def prior(self, labels: Labels) -> Shares:
        """Equal shares of the classes that occur."""
        present = np.bincount(labels) > 0
        return present / present.sum()


SAMPLERS: Final[dict[str, Callable[..., RowSampler]]] = {
    "shuffle": Shuffle,
    "weighted": Weighted,
    "balanced": Balanced,
}


def epoch_draw(sampler: RowSampler, labels: Labels, seed: int, epoch: int) -> tuple[Draw, Draw]:
    """One epoch's rows and one seed per drawn row (for its augmentation), for all processes.

    A row drawn twice gets two seeds: oversampled images differ.
    """
    sequence = np.random.SeedSequence((seed, epoch))
    rows = sampler.draw(labels, np.random.default_rng(sequence.spawn(1)[0]))
    seeds = sequence.generate_state(len(rows), np.uint64) >> np.uint64(1)  # into int64
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
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Takes what `epoch_draw` and `shard` need; the epoch is 0 until it is set."""
        self._draw = (sampler, labels, seed)
        self._shard = (rank, world_size, batch_size)
        self._length = len(shard(np.arange(len(labels)), *self._shard))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Draws the epoch afresh: what was drawn before changes nothing."""
        rows, seeds = epoch_draw(*self._draw, self.epoch)
        yield from zip(
            shard(rows, *self._shard).tolist(), shard(seeds, *self._shard).tolist(), strict=True
        )


def _cycled(
    rows: Int[np.ndarray, " members"], length: int, rng: np.random.Generator
) -> Int[np.ndarray, " length"]:
    rounds = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:length]
