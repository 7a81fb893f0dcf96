"""Distillation: probabilities of other networks as additional targets of the training rows.

Hinton et al. 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from skinmm.config.optimisation import LossConfig
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.evaluation.prediction_files import PredictionFile
from skinmm.training.leak_guard import find_overlaps, read_teacher_cohorts

Soft = Float[Tensor, "n classes"]


def load_teacher(config: LossConfig, data: LesionData, trained_prior: Sequence[float]) -> Soft:
    """Return the teacher's softened probabilities of the training rows, in their order.

    The calibrated probabilities of the file are shifted from the class shares in use to those that
    the network is trained on, as its labels are, so that the network is corrected as usual.

    Raises:
        InputError: rows or classes are missing, or a teacher was trained on a row that it teaches.
    """
    path = Path(config.teacher or "")
    if path.suffix in (".ckpt", ".safetensors") or path.is_dir():
        raise InputError(
            f"loss.teacher={path}: must be a prediction file: RUN/predictions/test.csv of a run "
            "with data.fold=all, or the output of predict.py for the training rows"
        )
    file = PredictionFile(path)
    classes, probabilities = file.parse_probabilities()
    if set(classes) != set(data.classes):
        raise InputError(
            f"loss.teacher={path} has the classes {', '.join(classes)}; this run has "
            f"{', '.join(data.classes)}"
        )
    rows = data.cohort.iloc[data.rows("train")]
    positions = pd.Index(file.table["image_id"].astype(str)).get_indexer(pd.Index(rows["image_id"]))
    if missing := int((positions < 0).sum()):
        raise InputError(
            f"loss.teacher={path} lacks predictions of {missing} of {len(rows)} training rows, "
            f"such as {rows['image_id'].iloc[int(np.argmin(positions))]}"
        )
    _require_unseen(path, rows, file.parse_folds(), positions)
    order = [classes.index(name) for name in data.classes]
    natural = np.maximum(data.natural_prior, np.finfo(np.float64).tiny)
    shifted = probabilities[positions][:, order] * (np.asarray(trained_prior) / natural)
    return soften(torch.from_numpy(shifted), config.temperature).float()


def soften(probabilities: Soft, temperature: float) -> Soft:
    """Return the probabilities at a temperature: proportional to p ** (1 / temperature)."""
    logits = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    return (logits / temperature).softmax(dim=1)


def _require_unseen(
    path: Path, rows: pd.DataFrame, folds: np.ndarray | None, positions: np.ndarray
) -> None:
    """Raise InputError if a teacher was trained on any of the rows it teaches."""
    numbers = np.full(len(rows), -1) if folds is None else folds[positions]
    for fold, trained in read_teacher_cohorts(path).items():
        taught = rows[(numbers == fold) | (folds is None)]
        if count := int(find_overlaps(taught, trained).sum()):
            raise InputError(
                f"loss.teacher={path}: {count} of {len(taught)} rows share an image, a lesion or a "
                "patient with the training rows of the network that predicted them; use "
                "predictions of data.fold=all, or of a network trained on other rows"
            )
