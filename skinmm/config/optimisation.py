"""Settings of the loss, the optimiser and the learning-rate schedule."""

from dataclasses import dataclass
from typing import Final

from skinmm.config.setting import Component, fraction, literal_path, setting, shared
from skinmm.errors import InputError

CLASSIFY: Final = "classification"


@dataclass
class LossConfig(Component):
    """Loss, and optional distillation from the probabilities of a teacher."""

    teacher: str | None = literal_path(
        None,
        "prediction file of networks that were not trained on the rows they teach",
        task=CLASSIFY,
        neural=True,
        shared=False,
    )
    temperature: float = shared(
        2.0, "softens the probabilities of teacher and network", low=0.1, high=100, task=CLASSIFY
    )
    teacher_share: float = fraction(
        0.5, "share of the teacher in the loss", task=CLASSIFY, shared=True
    )


@dataclass
class ScheduleConfig:
    """Learning-rate schedule."""

    name: str = setting(
        "warmup_cosine",
        "schedule",
        choices=("warmup_cosine", "one_cycle", "plateau", "constant"),
        shared=lambda name: name != "plateau",  # which would count epochs of one client
    )
    warmup: float = fraction(
        0.1, "fraction of the steps used for warm-up; not used by plateau", shared=True
    )
    final: float = fraction(0.01, "final learning rate as a fraction of the highest", shared=True)
    factor: float = shared(0.2, "factor by which plateau lowers the rate", low=0.001, high=0.999)
    patience: int = shared(
        1, "epochs without improvement before plateau lowers the rate", low=0, high=1_000_000
    )


@dataclass
class OptimizerConfig(Component):
    """Optimiser and its learning rates."""

    lr: float | int | str = shared(
        1e-3, "highest learning rate; auto: by a range test on training rows", low=0
    )
    weight_decay: float = shared(1e-2, "weight decay of matrices only", low=0)
    backbone_lr_scale: float = shared(
        1.0, "learning rate of the image network divided by lr", low=0, task=CLASSIFY
    )
    layer_decay: float = shared(
        1.0, "lr of an image layer divided by that of the next", low=0.01, high=1, task=CLASSIFY
    )
    head_epochs: int = shared(
        0,
        "number of first epochs in which the image network is frozen",
        low=0,
        high=1_000_000,
        task=CLASSIFY,
        neural=True,
    )

    def __post_init__(self) -> None:
        """Check that the learning rate is a number or `auto`."""
        if isinstance(self.lr, str) and self.lr != "auto":
            raise InputError(f"optimizer.lr={self.lr}: must be a number, e.g. 0.001, or auto")
