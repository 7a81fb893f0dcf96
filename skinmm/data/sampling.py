"""Row samplers: pure functions from labels, groups, seed and epoch to the rows of an epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch.utils.data import Sampler

from skinmm.config import Registry
from skinmm.errors import InputError

Labels = Int[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]
Draw = Int[np.ndarray, " drawn"]
Rows = Int[np.ndarray, " members"]
Shares = Float[np.ndarray, " classes"]

STRONGEST_POWER: Final = 2.0
LARGEST_RATIO: Final = 1000


@runtime_checkable
class RowSampler(Protocol):
    """Protocol of the samplers in `SAMPLERS`."""

    @property
    def corrects(self) -> str:
        """Name of the sampler if it changes the class shares, otherwise empty."""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:
        """Return the row numbers of one epoch, in order; every epoch has the same number.

        `labels` and `groups` are the class and the patient of every row; epochs count from 0.
        """

    def prior(self, labels: Labels) -> Shares:
        """Return the expected share of each class in a draw, for the prior correction."""


@dataclass(frozen=True)
class Shuffle:
    """Draw every row once, in random order."""

    corrects: ClassVar[str] = ""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """Return a permutation of the rows."""
        return make_generator(seed, epoch).permutation(len(labels))

    def prior(self, labels: Labels) -> Shares:
        """Return the shares of the classes in the data."""
        return np.bincount(labels) / len(labels)


@dataclass(frozen=True)
class Weighted:
    """Draw with replacement; the weight of a row is the count of its class to the power -`power`.

    Attributes:
        power: 0 to 2; 0: the shares of the data, 1: every class equally often.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        """Check the power."""
        if not 0 <= self.power <= STRONGEST_POWER:
            raise InputError(
                f"sampler argument power={self.power}: must be between 0 and {STRONGEST_POWER:g}"
            )

    @property
    def corrects(self) -> str:
        """Name of the sampler; empty if power=0, which leaves the class shares unchanged."""
        return "weighted sampler" if self.power else ""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """Draw as many rows as the data have."""
        weights = (np.bincount(labels)[labels] / len(labels)) ** -self.power
        chances = weights / weights.sum()
        return make_generator(seed, epoch).choice(len(labels), len(labels), p=chances)

    def prior(self, labels: Labels) -> Shares:
        """Return the counts to the power 1 - `power`, divided by their sum."""
        counts = np.bincount(labels).astype(float)
        share = np.where(counts > 0, np.maximum(counts, 1) ** (1 - self.power), 0)
        return share / share.sum()


@dataclass(frozen=True)
class Balanced:
    """Draw every class equally often; reshuffle the rows of a class after each pass."""

    corrects: ClassVar[str] = "balanced sampler"

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:
        """Return as many rows as the data have, in blocks with one row of each class."""
        rng = make_generator(seed, epoch)
        classes = np.unique(labels)
        blocks = -(-len(labels) // len(classes))
        members = [np.flatnonzero(labels == label) for label in classes]
        columns = [self._draw_class(rows, groups, blocks, rng) for rows in members]
        return rng.permuted(np.stack(columns, axis=1), axis=1).ravel()[: len(labels)]

    def prior(self, labels: Labels) -> Shares:
        """Return equal shares for the classes that occur."""
        present = np.bincount(labels) > 0
        return present / present.sum()

    def _draw_class(
        self,
        rows: Rows,
        groups: Groups,  # noqa: ARG002
        length: int,
        rng: np.random.Generator,
    ) -> Draw:
        return _cycle(rows, length, rng)


@dataclass(frozen=True)
class PatientBalanced(Balanced):
    """Draw classes equally often, and the patients of a class equally often.

    A row is drawn with probability 1 / (classes * patients with the class * rows of the patient
    with the class): a patient with a hundred images counts as much as one with two.
    """

    corrects: ClassVar[str] = "patient-balanced sampler"

    def _draw_class(
        self, rows: Rows, groups: Groups, length: int, rng: np.random.Generator
    ) -> Draw:
        """Draw patients in turn, reshuffled after each pass, and a random row of each."""
        ordered = rows[np.argsort(groups[rows], kind="stable")]
        _, starts, counts = np.unique(groups[ordered], return_index=True, return_counts=True)
        patients = _cycle(np.arange(len(starts)), length, rng)
        return ordered[starts[patients] + rng.integers(counts[patients])]


@dataclass(frozen=True)
class Oversample(Balanced):
    """Draw every row once, then rows of smaller classes again until all classes have equal size."""

    corrects: ClassVar[str] = "oversampling"

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """Return as many rows of each class as the largest class has, in random order."""
        rng = make_generator(seed, epoch)
        largest = int(np.bincount(labels).max())
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        return rng.permutation(np.concatenate([_cycle(rows, largest, rng) for rows in members]))


@dataclass(frozen=True)
class Undersample:
    """Draw all rows of the smallest class, and a new subset of every other class in each epoch.

    A class is permuted and divided among ceil(rows / size) epochs. In this period every row is
    drawn once, or twice to fill the last epoch; then the class is permuted again.

    Attributes:
        ratio: rows of a subset per row of the smallest class, 1 to 1000.
    """

    ratio: float = 1.0
    corrects: ClassVar[str] = "undersampling"

    def __post_init__(self) -> None:
        """Check the ratio."""
        if not 1 <= self.ratio <= LARGEST_RATIO:
            raise InputError(
                f"sampler argument ratio={self.ratio}: must be between 1 and {LARGEST_RATIO}"
            )

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """Return the subset of each class for the epoch, in random order."""
        sizes = self._sizes(labels)
        parts = []
        for label in np.flatnonzero(sizes):
            rows, size = np.flatnonzero(labels == label), int(sizes[label])
            round_, part = divmod(epoch, -(-len(rows) // size))
            # From 1: a seed sequence ignores zeros at its end.
            order = make_generator(seed, round_, int(label) + 1).permutation(rows)
            parts.append(np.resize(order, len(rows) + size)[part * size : (part + 1) * size])
        return make_generator(seed, epoch).permutation(np.concatenate(parts))

    def prior(self, labels: Labels) -> Shares:
        """Return the share of each class among the rows that an epoch draws."""
        sizes = self._sizes(labels)
        return sizes / sizes.sum()

    def _sizes(self, labels: Labels) -> Int[np.ndarray, " classes"]:
        counts = np.bincount(labels)
        return np.minimum(counts, round(self.ratio * int(counts[counts > 0].min())))


SAMPLERS: Final[Registry[Callable[..., RowSampler]]] = Registry(
    "sampler",
    shuffle=Shuffle,
    weighted=Weighted,
    balanced=Balanced,
    undersample=Undersample,
    oversample=Oversample,
    patient_balanced=PatientBalanced,
)


def make_generator(*key: int) -> np.random.Generator:
    """Return a generator for (seed, epoch, ...), independent of the augmentation seeds."""
    return np.random.default_rng(np.random.SeedSequence(key).spawn(1)[0])


def _cycle(rows: Rows, length: int, rng: np.random.Generator) -> Int[np.ndarray, " length"]:
    rounds = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:length]


def draw_epoch(
    sampler: RowSampler, labels: Labels, groups: Groups, seed: int, epoch: int
) -> tuple[Draw, Draw]:
    """Return the rows of one epoch for all processes, with an augmentation seed for each draw."""
    rows = sampler.draw(labels, groups, seed, epoch)
    states = np.random.SeedSequence((seed, epoch)).generate_state(len(rows), np.uint64)
    seeds = states >> np.uint64(1)  # into int64
    return rows, seeds.astype(np.int64)


def shard(draw: Draw, rank: int, world_size: int, batch_size: int) -> Int[np.ndarray, " share"]:
    """Return the block of every global batch that belongs to one rank.

    The last, incomplete global batch is dropped (other rows in each epoch), so that every rank
    takes the same number of steps, and the draw does not depend on how a global batch is divided.
    A draw smaller than one global batch is divided evenly.

    Args:
        draw: rows of one epoch (or their seeds), the same on every rank.
        rank: number of this process.
        world_size: number of processes.
        batch_size: rows per step and process.
    """
    per_rank = min(batch_size, len(draw) // world_size)
    if per_rank == 0:
        raise InputError(
            f"{len(draw)} training rows are too few for {world_size} processes; use fewer processes"
        )
    whole = len(draw) // (per_rank * world_size) * per_rank * world_size
    return draw[:whole].reshape(-1, world_size, per_rank)[:, rank].ravel()


def shard_evaluation(rows: int, rank: int, world_size: int) -> Int[np.ndarray, " share"]:
    """Return the rows of one rank for evaluation; the last row is repeated to fill all ranks.

    The gathering process drops repeats by row number, so that every row counts exactly once.
    """
    padded = -(-rows // world_size) * world_size
    return np.minimum(np.arange(padded), rows - 1)[rank::world_size]


class EpochSampler(Sampler[tuple[int, int]]):
    """Pairs (row, augmentation seed) of this rank; arguments as for `draw_epoch` and `shard`."""

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
        self._draw = (sampler, labels, groups, seed)
        self._shard = (rank, world_size, batch_size)
        self._length = len(shard(sampler.draw(labels, groups, seed, 0), *self._shard))
        self.start_at(0, 0)

    def start_at(self, epoch: int, steps: int) -> None:
        """Resume an epoch after a number of steps."""
        self.epoch, self._skipped = epoch, steps * min(self._shard[2], self._length)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; Lightning calls this before every epoch, also before a resumed one."""
        if epoch != self.epoch:
            self.start_at(epoch, 0)

    def __len__(self) -> int:
        """Return the number of rows of this rank in a whole epoch."""
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the epoch; earlier draws have no influence."""
        draws = draw_epoch(*self._draw, self.epoch)
        rows, seeds = (shard(draw, *self._shard)[self._skipped :].tolist() for draw in draws)
        yield from zip(rows, seeds, strict=True)
