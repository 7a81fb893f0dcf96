"""Trained parameters of the image network: all, normalisation, or low-rank adapters (LoRA)."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor, nn

from skinmm.errors import InputError

SCALE: Final = 2.0  # of an adapter's product
_BASE: Final = ".base_layer."
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(net: nn.Module, rank: int, size: int) -> None:
    """Add low-rank adapters to linear layers and ungrouped convolutions, in place.

    Hu et al. 2022, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685, by
    `peft`. Layers that would gain as many parameters as they have, and layers whose weights the
    network uses without calling them, have none.

    `size` is the side of the images in pixels.
    """
    if find_spec("peft") is None:
        raise InputError("model.tune=lora needs peft: pip install 'skinmm[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    weights = _list_called_weights(net, size)
    # An adapter has `rank` values for each output, and for each value of an output's weights.
    names = [n for n, w in weights.items() if rank * (len(w) + w[0].numel()) < w.numel()]
    if not names:
        raise InputError(
            f"model.tune=lora: no layer can have adapters of model.lora_rank={rank}; choose a "
            "lower rank, or tune=norm or all"
        )
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names)
    inject_adapter_in_model(config, net)


def list_trained(net: nn.Module, tune: str) -> list[str]:
    """Return the names of the parameters that `model.tune` trains."""
    names = [name for name, _ in net.named_parameters()]
    if tune == "lora":
        return [name for name in names if name.endswith((_DOWN, _UP))]
    if tune == "norm":
        norms = [n for n, m in net.named_modules() if "norm" in type(m).__name__.lower()]
        return [name for name in names if name.rpartition(".")[0] in norms]
    return names if tune == "all" else []


def remove_adapters(net: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Remove the adapters in place, to load tensors without adapters."""
    if any(name.startswith(prefix) and _BASE in name for name in state):
        return
    for name, module in [*net.named_modules()]:
        if hasattr(module, "base_layer"):
            net.set_submodule(name, module.base_layer)


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapters into the weights of their layers, in tensors of a network."""
    merged = {}
    for name, value in state.items():
        if name.endswith((_DOWN, _UP)):
            continue
        layer = name.removesuffix(f"{_BASE}weight")
        if layer != name:
            down, up = state[layer + _DOWN], state[layer + _UP]
            value = value + SCALE * (up.flatten(1) @ down.flatten(1)).view_as(value)
        merged[name.replace(_BASE, ".")] = value
    return merged


def split_adapters(merged: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `merge_adapters`; `parts` are the tensors of the adapters and of their layers."""
    names = {name.replace(_BASE, ".") for name in parts}
    return {**{name: merged[name] for name in merged if name not in names}, **parts}


def _list_called_weights(net: nn.Module, size: int) -> dict[str, Tensor]:
    """Return the weights of the linear layers and ungrouped convolutions in use."""
    called: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda m, *_, n=name: called.update({n: m.weight}))
        for name, layer in net.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    was_training = net.training
    with torch.inference_mode():
        net.eval()(torch.zeros(1, 3, size, size))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return called
