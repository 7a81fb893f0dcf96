"""An exponential moving average of the weights, which is what gets validated, kept and predicts.

Polyak and Juditsky 1992, doi:10.1137/0330046; the early steps as in timm and TensorFlow.
"""

from typing import Any, Final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from skinmm.models.checkpoint import PREFIX

State = dict[str, Tensor]

KEY: Final = "training_weights"


class WeightAverage(Callback):
    """Averages parameters and BatchNorm statistics after every optimiser step.

    Checkpoints hold the average where weights are looked for, and the weights that training goes
    on with under a key of their own: what is validated, kept and used is one and the same network.
    """

    def __init__(self, decay: float) -> None:
        """Takes the share of the average that a step leaves, below 1."""
        self._decay = decay
        self._average: State = {}
        self._training: State = {}  # while the average is in the network, or from a checkpoint
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins with the weights there are; a resumed run puts those it trains back."""
        self._average = _copied(pl_module.network)
        if self._training:
            pl_module.network.load_state_dict(self._training)
            self._training = {}
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Moves the average, once a step was taken."""
        if trainer.global_step == self._steps:  # gradients are being accumulated
            return
        self._steps = trainer.global_step
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, value in pl_module.network.state_dict().items():
            kept = self._average[name]
            if kept.is_floating_point():
                kept.lerp_(value.to(kept.dtype), 1 - decay)
            else:
                kept.copy_(value)

    def on_validation_start(self, _: pl.Trainer, pl_module: Any) -> None:
        """Puts the average into the network."""
        if self._average:
            self._training = _copied(pl_module.network)
            pl_module.network.load_state_dict(self._average)

    def on_validation_end(self, _: pl.Trainer, pl_module: Any) -> None:
        """Puts the training weights back."""
        if self._training:
            pl_module.network.load_state_dict(self._training)
            self._training = {}

    def on_save_checkpoint(
        self, _: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the average as the network's weights, and those it trains beside them."""
        if not self._average:
            return
        weights = checkpoint["state_dict"]
        checkpoint[KEY] = self._training or _copied(pl_module.network)
        weights.update({f"{PREFIX}{name}": value for name, value in self._average.items()})

    def on_load_checkpoint(
        self, _: pl.Trainer, __: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the weights to train on with until the run starts."""
        self._training = checkpoint.get(KEY, {})


def _copied(network: Any) -> State:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
