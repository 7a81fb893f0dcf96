"""Data loader that passes images from worker processes through reused shared memory.

PyTorch allocates new shared memory for each batch, and the kernel clears its pages, which takes
longer than filling them. These slots are cleared once.
"""

import itertools
import multiprocessing
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from skinmm.errors import delay_sigterm

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

Batch = dict[str, Tensor]

_SLOTS: Final = 3  # per process: two batches wait (prefetch_factor) while the next is filled


class _SlotBatch(NamedTuple):
    """Message of a loader process: a batch whose images are in a slot."""

    small: dict[str, Shaped[np.ndarray, "rows ..."]]
    worker: int
    slot: int
    rows: int
    images: Tensor | None  # the whole slot, None if the reader has it already


class _SlotDataset(Dataset[Any]):
    """Dataset that returns whole batches to a loader process.

    Images are copied to a free slot. If no slot is free, or samples have no image, PyTorch
    collates the samples.
    """

    def __init__(self, dataset: Dataset[Any], workers: int) -> None:
        self.dataset = dataset
        self.free: list[list[Semaphore]] = [
            [multiprocessing.Semaphore(1) for _ in range(_SLOTS)] for _ in range(workers)
        ]
        # Slots that the reader has received; those of batches that were not read are sent again.
        self.received = torch.zeros(workers, _SLOTS, dtype=torch.bool)
        self.received.share_memory_()  # type: ignore[no-untyped-call]
        self._slots: dict[int, Tensor] = {}  # slots of this process

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]

    def __getitems__(self, keys: list[Any]) -> "Batch | _SlotBatch | list[Any]":
        whole = getattr(self.dataset, "__getitems__", None)
        if whole and get_worker_info() is None:
            return whole(keys)
        first = self.dataset[keys[0]]
        worker = info.id if (info := get_worker_info()) else 0
        semaphores = self.free[worker] if info and "image" in first else []
        slot = next((i for i, free in enumerate(semaphores) if free.acquire(block=False)), None)
        if slot is None:
            return [first, *(self.dataset[key] for key in keys[1:])]
        images = self._get_slot(worker, slot, len(keys), first["image"])
        samples = []
        for row, key in enumerate(keys):
            sample = self.dataset[key] if row else first
            images[row] = sample.pop("image")
            samples.append(sample)
        small = {name: value.numpy() for name, value in default_collate(samples).items()}
        received = bool(self.received[worker, slot])
        return _SlotBatch(small, worker, slot, len(keys), None if received else images)

    def _get_slot(self, worker: int, number: int, rows: int, image: Tensor) -> Tensor:
        slot = self._slots.get(number)
        if slot is None or len(slot) < rows or slot[0].shape != image.shape:
            slot = self._slots[number] = torch.empty(rows, *image.shape, dtype=image.dtype)
            slot.share_memory_()  # type: ignore[no-untyped-call]
            self.received[worker, number] = False
        return slot


class SlotLoader(DataLoader[Any]):
    """DataLoader of samples with an `image`; batches stay valid for the caller.

    Args:
        dataset: dataset of samples, dictionaries for `default_collate`.
        pin: copy batches to page-locked memory, from which a GPU copies faster.
        options: options of DataLoader except `collate_fn`, `pin_memory`, `persistent_workers`.
    """

    def __init__(self, dataset: Dataset[Any], *, pin: bool = False, **options: Any) -> None:
        workers = options.get("num_workers", 0)
        self._slot_dataset = _SlotDataset(dataset, workers)
        # Persistent processes serve one epoch at a time, so that no other epoch uses the slots.
        super().__init__(
            self._slot_dataset, collate_fn=collate, persistent_workers=workers > 0, **options
        )
        self._pin = pin
        self._mapped: dict[tuple[int, int], Tensor] = {}  # slots by (worker, slot)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator suffices
        """Iterate over the batches of an epoch."""
        # Before the processes start: release the slots of batches that were not read.
        for free in itertools.chain(*self._slot_dataset.free):
            free.acquire(block=False)
            free.release()
        yield from map(self._copy, super().__iter__())

    def _copy(self, batch: Batch | _SlotBatch) -> Batch:
        if isinstance(batch, _SlotBatch):
            slot = batch.worker, batch.slot
            if batch.images is not None:
                self._mapped[slot] = batch.images
                self._slot_dataset.received[slot] = True
            shared = self._mapped[slot][: batch.rows]
            image = torch.empty_like(shared, pin_memory=self._pin).copy_(shared)
            self._slot_dataset.free[batch.worker][batch.slot].release()
            batch = {"image": image, **{k: torch.from_numpy(v) for k, v in batch.small.items()}}
        return {name: value.pin_memory() for name, value in batch.items()} if self._pin else batch


def collate(fetched: Batch | _SlotBatch | list[Any]) -> Batch | _SlotBatch:
    """Collate a list of samples; a batch is returned unchanged."""
    return default_collate(fetched) if isinstance(fetched, list) else fetched


def ignore_interrupts(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM, so that the main process can finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    delay_sigterm()
