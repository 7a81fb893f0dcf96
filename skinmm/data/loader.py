"""Batches from loader processes, through memory that is used again and again.

What a process hands over lies in shared memory, which PyTorch makes anew for each batch: the kernel
clears its pages, which takes longer than filling them. These slots are cleared once.
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

Batch = dict[str, Tensor]

_SLOTS: Final = 3  # of a process: two batches wait (prefetch_factor) while the next is filled


class _Filled(NamedTuple):
    """What a process says of a batch whose images lie in a slot; nothing of it is shared anew."""

    small: dict[str, Shaped[np.ndarray, "rows ..."]]
    worker: int
    slot: int
    rows: int
    images: Tensor | None  # the whole slot, until the reader has it


class _Filling(Dataset[Any]):
    """A dataset of which a loader process asks for whole batches.

    An image goes straight into a slot that nobody reads any more. Where none is free, or there is
    no image, the samples are left to PyTorch.
    """

    def __init__(self, dataset: Dataset[Any], workers: int) -> None:
        self.dataset = dataset
        self.free: list[list[Semaphore]] = [
            [multiprocessing.Semaphore(1) for _ in range(_SLOTS)] for _ in range(workers)
        ]
        # Slots that the reader has; one that came with a batch that nobody took comes again.
        self.known = torch.zeros(workers, _SLOTS, dtype=torch.bool)
        self.known.share_memory_()  # type: ignore[no-untyped-call]
        self._slots: dict[int, Tensor] = {}  # of this process

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]

    def __getitems__(self, keys: list[Any]) -> "Batch | _Filled | list[Any]":
        whole = getattr(self.dataset, "__getitems__", None)
        if whole and get_worker_info() is None:
            return whole(keys)
        first = self.dataset[keys[0]]
        place = self._free_place() if "image" in first else None
        if place is None:
            return [first, *(self.dataset[key] for key in keys[1:])]
        worker, slot = place
        images = self._slot(worker, slot, len(keys), first["image"])
        samples = []
        for row, key in enumerate(keys):
            sample = self.dataset[key] if row else first
            images[row] = sample.pop("image")
            samples.append(sample)
        small = {name: value.numpy() for name, value in default_collate(samples).items()}
        known = bool(self.known[worker, slot])
        return _Filled(small, worker, slot, len(keys), None if known else images)

    def _free_place(self) -> tuple[int, int] | None:
        worker = get_worker_info()
        if worker is None:
            return None
        free = (i for i, each in enumerate(self.free[worker.id]) if each.acquire(block=False))
        slot = next(free, None)
        return None if slot is None else (worker.id, slot)

    def _slot(self, worker: int, place: int, rows: int, image: Tensor) -> Tensor:
        slot = self._slots.get(place)
        if slot is None or len(slot) < rows or slot[0].shape != image.shape:
            slot = self._slots[place] = torch.empty(rows, *image.shape, dtype=image.dtype)
            slot.share_memory_()  # type: ignore[no-untyped-call]
            self.known[worker, place] = False
        return slot


class SlotLoader(DataLoader[Any]):
    """A DataLoader of samples with an `image`, each batch of which is the caller's own."""

    def __init__(self, dataset: Dataset[Any], *, pin: bool = False, **options: Any) -> None:
        """As DataLoader.

        Args:
            dataset: of samples: dictionaries that `default_collate` takes.
            pin: copies into page-locked memory, from where a GPU fetches faster.
            options: of DataLoader, but for `collate_fn`, `pin_memory` and `persistent_workers`.
        """
        workers = options.get("num_workers", 0)
        self._filling = _Filling(dataset, workers)
        # Processes that stay have one epoch at a time, so that its slots are nobody else's.
        super().__init__(
            self._filling, collate_fn=collate, persistent_workers=workers > 0, **options
        )
        self._pin = pin
        self._held: dict[tuple[int, int], Tensor] = {}  # so that PyTorch need not map them again

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # nobody asks for more of it
        """The batches of an epoch."""
        # Before the processes are told to go on: batches that nobody took hold no slot any more.
        for free in itertools.chain(*self._filling.free):
            free.acquire(block=False)
            free.release()
        for batch in super().__iter__():
            yield self._own(batch)

    def _own(self, batch: Batch | _Filled) -> Batch:
        if isinstance(batch, _Filled):
            place = batch.worker, batch.slot
            if batch.images is not None:
                self._held[place] = batch.images
                self._filling.known[place] = True
            shared = self._held[place][: batch.rows]
            image = torch.empty_like(shared, pin_memory=self._pin).copy_(shared)
            self._filling.free[batch.worker][batch.slot].release()
            batch = {"image": image, **{k: torch.from_numpy(v) for k, v in batch.small.items()}}
        return {name: value.pin_memory() for name, value in batch.items()} if self._pin else batch


def collate(fetched: Batch | _Filled | list[Any]) -> Batch | _Filled:
    """A batch of samples, if it is none yet."""
    return default_collate(fetched) if isinstance(fetched, list) else fetched
