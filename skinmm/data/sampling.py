"""Which rows an epoch sees: pure functions of labels, groups, seed and epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch.utils.data import Sampler

from skinmm.errors import InputError

Labels = Int[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]
Draw = Int[np.ndarray, " drawn"]
Members = Int[np.ndarray, " members"]
Shares = Float[np.ndarray, " classes"]

STRONGEST_POWER: Final = 2.0
LARGEST_RATIO: Final = 1000


@runtime_checkable
class RowSampler(Protocol):
    """What every entry of `SAMPLERS` answers."""

    @property
    def corrects(self) -> str:
        """Its name where it changes the class shares, else empty: two corrections are too many."""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:
        """One epoch's row numbers, in order; every epoch has equally many.

        Args:
            labels: class of every row.
            groups: patient of every row.
            seed: of the run.
            epoch: from 0.
        """

    def prior(self, labels: Labels) -> Shares:
        """Each class's expected share of a draw, for the correction of probabilities."""


@dataclass(frozen=True)
class Shuffle:
    """Every row once, in random order."""

    corrects: ClassVar[str] = ""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """A permutation."""
        return make_generator(seed, epoch).permutation(len(labels))

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

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """As many rows as the data have."""
        weights = (np.bincount(labels)[labels] / len(labels)) ** -self.power
        chances = weights / weights.sum()
        return make_generator(seed, epoch).choice(len(labels), len(labels), p=chances)

    def prior(self, labels: Labels) -> Shares:
        """A class's count to the power 1 - `power`, over the sum of these."""
        counts = np.bincount(labels).astype(float)
        share = np.where(counts > 0, np.maximum(counts, 1) ** (1 - self.power), 0)
        return share / share.sum()


class _EvenClasses:
    """Every class once in every run of as many rows as there are classes."""

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:
        """Runs that hold each class once, in random order within the run; as long as the data."""
        rng = make_generator(seed, epoch)
        classes = np.unique(labels)
        runs = -(-len(labels) // len(classes))
        columns = [
            self._members(np.flatnonzero(labels == label), groups, runs, rng) for label in classes
        ]
        return rng.permuted(np.stack(columns, axis=1), axis=1).ravel()[: len(labels)]

    def prior(self, labels: Labels) -> Shares:
        """Equal shares of the classes that occur."""
        present = np.bincount(labels) > 0
        return present / present.sum()

    def _members(
        self, rows: Members, groups: Groups, length: int, rng: np.random.Generator
    ) -> Draw:
        raise NotImplementedError


@dataclass(frozen=True)
class Balanced(_EvenClasses):
    """Every class equally often; a class is permuted afresh each time its rows are used up."""

    corrects: ClassVar[str] = "balanced sampler"

    def _members(
        self,
        rows: Members,
        groups: Groups,  # noqa: ARG002
        length: int,
        rng: np.random.Generator,
    ) -> Draw:
        return _cycled(rows, length, rng)


@dataclass(frozen=True)
class PatientBalanced(_EvenClasses):
    """Every class equally often, within it every patient, and within a patient every row.

    A row is drawn with probability 1 / (classes * patients of its class * rows that the patient has
    of the class): a patient with a hundred images counts as much as one with two.
    """

    corrects: ClassVar[str] = "patient-balanced sampler"

    def _members(
        self, rows: Members, groups: Groups, length: int, rng: np.random.Generator
    ) -> Draw:
        """The class's patients, permuted afresh each time they are used up, a row of each."""
        ordered = rows[np.argsort(groups[rows], kind="stable")]
        _, starts, counts = np.unique(groups[ordered], return_index=True, return_counts=True)
        patients = _cycled(np.arange(len(starts)), length, rng)
        return ordered[starts[patients] + rng.integers(counts[patients])]


@dataclass(frozen=True)
class Oversample:
    """Every row once, and rows of the smaller classes again until all classes are equally large."""

    corrects: ClassVar[str] = "oversampling"

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """As many rows of each class as the largest has, in random order."""
        rng = make_generator(seed, epoch)
        largest = int(np.bincount(labels).max())
        parts = [
            _cycled(np.flatnonzero(labels == label), largest, rng) for label in np.unique(labels)
        ]
        return rng.permutation(np.concatenate(parts))

    def prior(self, labels: Labels) -> Shares:
        """Equal shares of the classes that occur."""
        return Balanced().prior(labels)


@dataclass(frozen=True)
class Undersample:
    """The smallest class whole, and of every other another subset each epoch.

    A class is permuted and dealt out over ceil(rows / size) epochs, its period, in which every row
    of it comes once or, to fill the last epoch, twice; then it is permuted afresh.

    Attributes:
        ratio: size of a subset: rows for each row of the smallest class, 1 to 1000.
    """

    ratio: float = 1.0
    corrects: ClassVar[str] = "undersampling"

    def __post_init__(self) -> None:
        """Refuses a ratio out of bounds."""
        if not 1 <= self.ratio <= LARGEST_RATIO:
            raise InputError(
                f"sampler argument ratio={self.ratio}: must be between 1 and {LARGEST_RATIO}"
            )

    def draw(self, labels: Labels, groups: Groups, seed: int, epoch: int) -> Draw:  # noqa: ARG002
        """The epoch's subset of each class, in random order."""
        sizes = self._sizes(labels)
        parts = []
        for label in np.flatnonzero(sizes):
            rows, size = np.flatnonzero(labels == label), int(sizes[label])
            round_, part = divmod(epoch, -(-len(rows) // size))
            # From 1: a seed sequence does not tell a 0 at its end from nothing.
            order = make_generator(seed, round_, int(label) + 1).permutation(rows)
            parts.append(np.resize(order, len(rows) + size)[part * size : (part + 1) * size])
        return make_generator(seed, epoch).permutation(np.concatenate(parts))

    def prior(self, labels: Labels) -> Shares:
        """Shares of the subsets."""
        sizes = self._sizes(labels)
        return sizes / sizes.sum()

    def _sizes(self, labels: Labels) -> Int[np.ndarray, " classes"]:
        counts = np.bincount(labels)
        return np.minimum(counts, round(self.ratio * int(counts[counts > 0].min())))


SAMPLERS: Final[dict[str, Callable[..., RowSampler]]] = {
    "shuffle": Shuffle,
    "weighted": Weighted,
    "balanced": Balanced,
    "undersample": Undersample,
    "oversample": Oversample,
    "patient_balanced": PatientBalanced,
}


def make_generator(*place: int) -> np.random.Generator:
    """Random numbers of a place (seed, epoch, ...), apart from the epoch's augmentation seeds."""
    return np.random.default_rng(np.random.SeedSequence(place).spawn(1)[0])


def _cycled(rows: Members, length: int, rng: np.random.Generator) -> Int[np.ndarray, " length"]:
    rounds = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:length]


def draw_epoch(
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


def shard_evaluation(rows: int, rank: int, world_size: int) -> Int[np.ndarray, " share"]:
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
        """Takes what `draw_epoch` and `shard` need; the epoch is 0 until it is set."""
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
        drawn = draw_epoch(*self._draw, self.epoch)
        rows, seeds = (shard(part, *self._shard)[self._made :].tolist() for part in drawn)
        yield from zip(rows, seeds, strict=True)
