"""Optimisers, parameter groups, and the learning rate over a run."""

import math
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from skinmm.config import OptimizerConfig, ScheduleConfig, build_component

OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
ONE_CYCLE_START: Final = 1 / 25  # of the highest rate (Smith and Topin 2018)


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build the optimiser of all parameters that require gradients."""
    return build_component(
        OPTIMIZERS, "optimizer", config, params=parameter_groups(network, config), lr=config.lr
    )


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay.

    Only matrices decay. The image network's rate is `backbone_lr_scale` times the others', and each
    of its layers has `layer_decay` times the rate of the next layer (Howard and Ruder 2018,
    doi:10.18653/v1/P18-1031).
    """
    image = getattr(network, "image", None)  # a segmenter has none
    depths = image.layer_depths() if image else {}
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name.removeprefix("image."))
        image_scale = config.backbone_lr_scale if name.startswith("image.") else 1.0
        scale = image_scale * config.layer_decay ** (depth or 0)
        groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * scale,
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (scale, matrix), parameters in groups.items()
    ]


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, steps: int, monitor: str) -> Any:
    """Return the schedule as Lightning expects it: by step, or for plateau by epoch.

    Args:
        optimizer: its learning rates are set.
        config: shape and bounds.
        steps: of the whole run.
        monitor: name of the value that plateau watches; a loss should fall, others should rise.
    """
    schedule: LRScheduler
    if config.name == "plateau":
        schedule = ReduceLROnPlateau(
            optimizer,
            mode="min" if monitor.endswith("loss") else "max",
            factor=config.factor,
            patience=config.patience,
        )
        return {"scheduler": schedule, "interval": "epoch", "monitor": monitor}
    schedule = LambdaLR(optimizer, partial(rate, config=config, steps=steps))
    return {"scheduler": schedule, "interval": "step"}


def rate(step: int, *, config: ScheduleConfig, steps: int) -> float:
    """Return the learning rate at a step, as a share of the highest.

    `warmup_cosine` rises linearly, then falls along half a cosine; `one_cycle` rises along half a
    cosine too, from 1/25; `constant` stays at the highest rate.

    Args:
        step: from 0.
        config: shape, share of warm-up steps, and last rate.
        steps: of the whole run.
    """
    warmup = int(config.warmup * steps)
    if step < warmup:
        if config.name == "one_cycle":
            return _cosine(ONE_CYCLE_START, 1.0, step / warmup)
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    return _cosine(1.0, config.final, min((step - warmup) / max(steps - warmup, 1), 1.0))


def _cosine(first: float, last: float, done: float) -> float:
    """Interpolate between two values along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
