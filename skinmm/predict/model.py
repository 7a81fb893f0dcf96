"""One checkpoint, ready to predict."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from scipy.special import softmax
from torch import Tensor

from skinmm.config import Config, from_mapping
from skinmm.data.dataset import View
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.referral import ConformalPredictor, OODDetector
from skinmm.evaluation.thresholds import Threshold, decision_priors
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.preprocess import check_steps
from skinmm.models.checkpoint import Card, CheckpointError, load_card
from skinmm.models.fusion import FUSIONS
from skinmm.models.lesion_finder import TASK, LesionFinder, MaskCheckpointError
from skinmm.models.network import build_network
from skinmm.predict.backends import Backend, TorchBackend, exported
from skinmm.vocabulary import Columns

UNDECIDED: Final = Threshold(0.5, "even", guaranteed=False)
"""Of a checkpoint that no validation followed, as an interrupted run leaves one."""


class ModelOutput(NamedTuple):
    """What a member says of a batch.

    Attributes:
        raw: the network's own probabilities.
        probabilities: as the checkpoint's calibration says.
        sets: which classes each row's prediction set holds, where the checkpoint makes sets.
        ood: how unlike the validation rows each row is, 1 is the limit, where it knows.
    """

    raw: Float64[np.ndarray, "b classes"]
    probabilities: Float64[np.ndarray, "b classes"]
    sets: Bool[np.ndarray, "b classes"] | None
    ood: Float64[np.ndarray, " b"] | None


@dataclass(frozen=True)
class CalibratedModel:
    """A network with everything that turns its output into calibrated probabilities.

    Attributes:
        backend: what runs the network.
        digest: SHA-256 of the checkpoint.
    """

    backend: Backend
    digest: str
    card: Card
    config: Config
    encoder: RecordEncoder
    calibration: Calibration
    threshold: Threshold
    conformal: ConformalPredictor | None
    familiarity: OODDetector | None
    finder: LesionFinder | None = None

    @classmethod
    def load(
        cls, path: Path, device: torch.device, backend: str = "torch", lanes: int = 1
    ) -> "CalibratedModel":
        """Rebuilds a network from a checkpoint alone, or takes the exported model beside it.

        Args:
            path: the checkpoint.
            device: where torch runs it.
            backend: auto, torch or onnx.
            lanes: batches that ONNX Runtime is to look at side by side.

        Raises:
            CheckpointError: the file is not a usable checkpoint.
            InputError: there is no exported model, and one was asked for.
        """
        card, weights = load_card(path)
        if card.config.get("task") == TASK:
            raise MaskCheckpointError(f"{path}: this checkpoint draws masks and classifies nothing")
        digest = sha256(path.read_bytes()).hexdigest()
        found = exported(path, digest, backend, device.type, lanes)
        try:
            config = from_mapping(Config, card.config)
            finder = LesionFinder(card.segmenter) if card.segmenter else None
            check_steps(card.preprocess, has_finder=finder is not None)
            encoder = RecordEncoder.from_state(card.encoder)
            runner = found or _torch_backend(config, card, encoder, weights)
        except (InputError, RuntimeError, LookupError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path}: not made by this version ({reason})") from error
        if isinstance(runner, TorchBackend):
            runner.network.to(device)
        return cls(
            runner,
            digest,
            card,
            config,
            encoder,
            Calibration.from_state(card.calibration) if card.calibration else Calibration(),
            Threshold(**card.threshold) if card.threshold else UNDECIDED,
            ConformalPredictor(**card.conformal) if card.conformal else None,
            OODDetector.from_state(card.ood) if card.ood else None,
            finder,
        )

    @property
    def inputs(self) -> frozenset[str]:
        """What it looks at, of {image, record}."""
        return FUSIONS[self.config.fusion.name].inputs

    @property
    def columns(self) -> list[str]:
        """The record columns that it uses."""
        return list(self.encoder.columns) if "record" in self.inputs else []

    @property
    def shares(self) -> Float64[np.ndarray, " classes"]:
        """What it divides probabilities by to say which class is called."""
        return decision_priors(self.config.evaluation.call, self.card.prior["deployed"])

    @property
    def view(self) -> View | None:
        """How it wants images, if it looks at them."""
        steps = tuple(self.card.preprocess)
        wish = View(self.config.model.image_size, self.config.data.icc, steps, self.finder)
        return wish if "image" in self.inputs else None

    @property
    def measured(self) -> list[str]:
        """The columns of its record that it measures on the image."""
        return [name for name in self.columns if self.finder and name in MEASUREMENTS]

    @property
    def needs_image(self) -> bool:
        """Whether it cannot do without: it looks at images, and never learned not to."""
        return "image" in self.inputs and not self.backend.stands_in

    @property
    def width(self) -> int:
        """How many numbers it keeps of a row that it looked at."""
        return len(self.card.classes) + 1

    def look(
        self,
        rows: Columns,
        images: UInt8[np.ndarray, "b size size 3"] | None,
        shown: Bool[np.ndarray, " b"],
    ) -> Float64[np.ndarray, "b width"]:
        """Looks at a batch in one pass: log-probabilities and unfamiliarity.

        Args:
            rows: canonical.
            images: their RGB pictures, if the network looks at them.
            shown: which of them are pictures at all.
        """
        record = self.encoder.transform(rows) if "record" in self.inputs else None
        outcome, features = self.backend(images, record, shown)
        ood = self.familiarity.score(features) if self.familiarity else np.zeros(len(shown))
        if "image" in self.inputs:
            ood[~shown] = np.nan  # validation rows had images: there is nothing to compare with
        return np.hstack([outcome.astype(np.float64), ood[:, None]])

    def judge(self, seen: Float64[np.ndarray, "b width"]) -> ModelOutput:
        """What follows from what was seen of rows, as `look` gives it."""
        raw = softmax(seen[:, :-1], axis=1)
        probabilities = self.calibration.apply(raw)
        sets = self.conformal.predict_sets(probabilities) if self.conformal else None
        return ModelOutput(raw, probabilities, sets, seen[:, -1] if self.familiarity else None)


def _torch_backend(
    config: Config, card: Card, encoder: RecordEncoder, weights: dict[str, Tensor]
) -> TorchBackend:
    widths = [column.stop - column.start for column in encoder.layout]
    network = build_network(config, widths, len(card.classes), pretrained=False)
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return TorchBackend(network, config.evaluation.views)
