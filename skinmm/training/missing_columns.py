"""The test rows once more, with ever more of their record withheld."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from skinmm.data.dataset import Blank
from skinmm.evaluation.predictions import Predictions
from skinmm.models.network import Network, full_precision
from skinmm.training import calibrate
from skinmm.training.module import Classifier, Outcomes

STEPS: Final = 4
"""Points of the curve beside the whole record; with fewer columns, one for each."""


class MissingColumns(pl.Callback):
    """Predicts every tested row without some of its columns; its image is looked at once.

    Attributes:
        counts: how many columns are withheld.
        tested: log-probabilities (n, counts, classes) of the last test, in order of rows.
    """

    tested: Float[Tensor, "n counts classes"]

    def __init__(self, blank: Blank) -> None:
        """Takes the record without any value."""
        self._blank = blank
        columns = len(blank.widths)
        points = np.linspace(0, columns, min(columns, STEPS) + 1)[1:]
        self.counts = np.unique(points.round().astype(int)).tolist()
        self._outcomes = Outcomes(("logits",))

    def on_test_batch_end(  # noqa: D102
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,  # noqa: ARG002
        batch: dict[str, Tensor],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        if not isinstance(pl_module, Classifier):
            return
        order = withheld_first(batch["row"].cpu().numpy(), len(self._blank.widths))
        logits = self._predicted(pl_module.network, batch, order)
        self._outcomes.to(logits.device).update(batch["row"], logits)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Gathers the rows of all ranks."""
        (self.tested,) = self._outcomes.taken()

    def predictions(
        self, test: calibrate.Raw, verdict: calibrate.Verdict
    ) -> dict[str, Predictions]:
        """What was predicted, by part: `missing_<columns withheld>_of_<columns>`.

        Args:
            test: the same rows with their whole record.
            verdict: as validation's whole records decided.
        """
        probabilities = self.tested.double().softmax(dim=2).cpu().numpy()
        return {
            f"missing_{count}_of_{len(self._blank.widths)}": verdict.calibrated(
                replace(test, probabilities=probabilities[:, place])
            )
            for place, count in enumerate(self.counts)
        }

    def _predicted(
        self, network: Network, batch: dict[str, Tensor], order: Int64[np.ndarray, "b columns"]
    ) -> Float[Tensor, "b counts classes"]:
        image, record = batch.get("image"), batch["record"]
        if image is not None:
            with full_precision(network.device.type):
                image = network.encode_image(image)
        shown = [self._blank.fill(record, order < count) for count in self.counts]
        return torch.stack([network.log_probabilities(image, each) for each in shown], dim=1)


def withheld_first(rows: Int[np.ndarray, " b"], columns: int) -> Int64[np.ndarray, "b columns"]:
    """Each column's place in the random order in which a row loses its columns."""
    orders = [np.random.default_rng(int(row)).permutation(columns) for row in rows]
    return np.array(orders, dtype=np.int64).reshape(len(rows), columns)
