"""One checkpoint, ready to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, UInt8

from skinmm.checkpoint import Card, CheckpointError, load_card
from skinmm.config import Config, from_mapping
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.thresholds import Threshold
from skinmm.evaluation.uncertainty import Conformal, Familiarity
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import Network, build_network

UNDECIDED: Final = Threshold(0.5, "even", guaranteed=False)
"""Of a checkpoint that no validation followed, as an interrupted run leaves one."""


class View(NamedTuple):
    """How a member wants its images: side of the square in pixels, and colour profiles."""

    size: int
    icc: str


class Opinion(NamedTuple):
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
class Member:
    """A network with everything that turns its output into calibrated probabilities."""

    network: Network
    card: Card
    config: Config
    encoder: RecordEncoder
    calibration: Calibration
    threshold: Threshold
    conformal: Conformal | None
    familiarity: Familiarity | None

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Member":
        """Rebuilds a network from a checkpoint alone.

        Raises:
            CheckpointError: the file is not a usable checkpoint.
        """
        card, weights = load_card(path)
        try:
            config = from_mapping(Config, card.config)
            encoder = RecordEncoder.from_state(card.encoder)
            widths = [column.stop - column.start for column in encoder.layout]
            network = build_network(config, widths, len(card.classes), pretrained=False)
            network.load_state_dict(weights)
        except (InputError, RuntimeError, LookupError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path}: not made by this version ({reason})") from error
        network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        return cls(
            network,
            card,
            config,
            encoder,
            Calibration.from_state(card.calibration) if card.calibration else Calibration(),
            Threshold(**card.threshold) if card.threshold else UNDECIDED,
            Conformal(**card.conformal) if card.conformal else None,
            Familiarity.from_state(card.ood) if card.ood else None,
        )

    @property
    def inputs(self) -> frozenset[str]:
        """What it looks at, of {image, record}."""
        return FUSIONS[self.config.fusion.name].inputs

    @property
    def view(self) -> View | None:
        """How it wants images, if it looks at them."""
        wish = View(self.config.model.image_size, self.config.data.icc)
        return wish if "image" in self.inputs else None

    @property
    def needs_image(self) -> bool:
        """Whether it cannot do without: it looks at images, and never learned not to."""
        return "image" in self.inputs and self.network.absent is None

    def judge(
        self,
        table: pd.DataFrame,
        images: UInt8[np.ndarray, "b size size 3"] | None,
        shown: Bool[np.ndarray, " b"],
    ) -> Opinion:
        """Predicts a batch in one pass.

        Args:
            table: canonical rows.
            images: their RGB pictures, if the network looks at them.
            shown: which of them are pictures at all.
        """
        device = self.network.device
        record = image = None
        if "record" in self.inputs:
            record = torch.from_numpy(self.encoder.transform(table)).to(device)
        if images is not None:
            image = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            views = self.config.evaluation.views
            seen = None if shown.all() else torch.from_numpy(shown).to(device)
            outcome, features = self.network.outcome(image, record, views, seen)
        raw = outcome.double().softmax(dim=1).cpu().numpy()
        probabilities = self.calibration.apply(raw)
        sets = self.conformal.sets(probabilities) if self.conformal else None
        ood = self.familiarity.score(features.cpu().numpy()) if self.familiarity else None
        return Opinion(raw, probabilities, sets, ood)
