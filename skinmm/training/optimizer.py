"""Optimisers with their parameter groups, and learning-rate schedules."""

import math
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from skinmm.config import OptimizerConfig, Registry, ScheduleConfig
from skinmm.training.callbacks import SELECTION

OPTIMIZERS: Final[Registry[type[Optimizer]]] = Registry(
    "optimizer", adamw=torch.optim.AdamW, adam=torch.optim.Adam, sgd=torch.optim.SGD
)


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the parameters that require gradients by learning rate and weight decay.

    Weight decay applies only to parameters of two or more dimensions. The image network's rate is
    `backbone_lr_scale` times the others', and each of its layers has `layer_decay` times the rate
    of the next layer (Howard and Ruder 2018, doi:10.18653/v1/P18-1031).
    """
    image = getattr(network, "image", None)  # a segmenter has none
    depths = image.layer_depths() if image else {}
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = config.backbone_lr_scale if name.startswith("image.") else 1.0
        scale *= config.layer_decay ** depths.get(name.removeprefix("image."), 0)
        groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    decays = {True: config.weight_decay, False: 0.0}
    return [
        {"params": parameters, "lr": float(config.lr) * scale, "weight_decay": decays[is_matrix]}
        for (scale, is_matrix), parameters in groups.items()
    ]


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, steps: int, monitor: str) -> Any:
    """Return the schedule as Lightning expects it: by step, or for plateau by epoch.

    `steps` is the number of steps of the whole run. plateau watches `SELECTION`, the mean of the
    metric `monitor`: a loss should fall, others should rise.
    """
    if config.name == "plateau":
        mode: Any = "min" if monitor.endswith("loss") else "max"
        plateau = ReduceLROnPlateau(optimizer, mode, config.factor, config.patience)
        return {"scheduler": plateau, "interval": "epoch", "monitor": SELECTION}
    schedule = LambdaLR(optimizer, partial(rate, config=config, steps=steps))
    return {"scheduler": schedule, "interval": "step"}


def rate(step: int, *, config: ScheduleConfig, steps: int) -> float:
    """Return the learning rate at a step, as a share of the highest.

    `warmup_cosine` rises linearly, then falls along half a cosine; `one_cycle` rises along half a
    cosine too, from 1/25; `constant` stays at the highest rate. Steps count from 0.
    """
    warmup = int(config.warmup * steps)
    if step < warmup:
        if config.name == "one_cycle":
            return _cosine(1 / 25, 1.0, step / warmup)  # as Smith and Topin 2018
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    return _cosine(1.0, config.final, min((step - warmup) / max(steps - warmup, 1), 1.0))


def _cosine(first: float, last: float, done: float) -> float:
    """Interpolate between two values along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
