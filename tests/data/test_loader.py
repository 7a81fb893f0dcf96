"""Batches through slots are what PyTorch's own loader gives, also while others are filled."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skinmm.data.loader import SlotLoader, collate

ROWS = 46


@dataclass(frozen=True)
class Numbered(Dataset[dict[str, Any]]):
    """Samples whose images, of these sides in turn if any, say which row they are."""

    sides: tuple[int, ...] = (8,)

    def __len__(self) -> int:
        """Number of rows."""
        return ROWS

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The sample of a row."""
        sample: dict[str, Any] = {"row": row, "record": torch.full((2,), float(row))}
        if self.sides:
            side = self.sides[row // 4 % len(self.sides)]
            sample["image"] = torch.full((3, side, side), row, dtype=torch.uint8)
        return sample


def loader(dataset: Numbered, workers: int = 2) -> SlotLoader:
    return SlotLoader(dataset, batch_size=4, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbered(), Numbered(()), Numbered((8, 6))])
def test_batches_are_those_of_pytorch(dataset: Numbered, workers: int) -> None:
    ours = loader(dataset, workers)
    for _ in range(2):  # the second time in slots that were used
        held = list(ours)  # a batch is the caller's: later ones do not write into it
        for one, other in zip(held, DataLoader(dataset, batch_size=4), strict=True):
            torch.testing.assert_close(one, other)


def test_an_epoch_that_is_left_takes_no_slot_along() -> None:
    ours = loader(Numbered())
    for _ in range(5):
        first: dict[str, Tensor] = next(iter(ours))
        assert first["row"].tolist() == [0, 1, 2, 3]
        assert first["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert torch.cat([batch["row"] for batch in ours]).tolist() == list(range(ROWS))


def test_one_process_collates_as_a_loader_process_does() -> None:
    dataset = Numbered()
    samples = [dataset[row] for row in range(4)]
    torch.testing.assert_close(collate(samples), next(iter(loader(dataset))))
