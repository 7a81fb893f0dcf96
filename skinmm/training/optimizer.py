"""Which parameter learns how fast: optimisers, parameter groups, and the rate over a run."""

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
    """An optimiser over everything that learns."""
    return build_component(
        OPTIMIZERS, "optimizer", config, params=parameter_groups(network, config), lr=config.lr
    )


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay.

    Matrices alone decay. The image network's rate is `backbone_lr_scale` of the others', and each
    of its layers learns `layer_decay` times as fast as the next one towards the output (layer-wise
    rates: Howard and Ruder 2018, doi:10.18653/v1/P18-1031).
    """
    image = getattr(network, "image", None)  # a network of masks has none
    depths = image.layer_depths() if image else {}
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name.removeprefix("image."))
        of_image = config.backbone_lr_scale if name.startswith("image.") else 1.0
        scale = of_image * config.layer_decay ** (depth or 0)
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
    """The schedule as Lightning wants it: by step, or for plateau by epoch and monitored value.

    Args:
        optimizer: whose rates are set.
        config: shape and bounds.
        steps: of the whole run.
        monitor: name of the value that plateau watches; a loss is to fall, others are to rise.
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
    """The learning rate at a step, as a share of the highest.

    `warmup_cosine` rises linearly, then falls along half a cosine; `one_cycle` rises along half a
    cosine too, from a 25th; `constant` stays where the warm-up ends.

    Args:
        step: from 0.
        config: shape, share of the steps that warm up, and last rate.
        steps: of the whole run.
    """
    warmup = int(config.warmup * steps)
    if step < warmup:
        if config.name == "one_cycle":
            return _between(ONE_CYCLE_START, 1.0, step / warmup)
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    return _between(1.0, config.final, min((step - warmup) / max(steps - warmup, 1), 1.0))


def _between(first: float, last: float, done: float) -> float:
    """Half a cosine from one value to another."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
