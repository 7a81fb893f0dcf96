"""Arrays sent between server and clients: selection, conversion and checks."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from skinmm.config import Config
from skinmm.errors import InputError
from skinmm.models.network import Network

NORMALISATION: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
IMAGE: Final = "image."  # prefix of the image network
Layout = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type of each shared array by its name."""


def list_shared(network: Network, config: Config, strategy: str, aggregate: str) -> list[str]:
    """Return the names of the shared arrays, in the order of the network.

    These are the weights that are trained, and the statistics of normalisation layers that are.
    Statistics and weights of normalisation layers stay local with `fedbn` (Li et al. 2021,
    arXiv:2102.07623). `aggregate` limits them to the image network or to all else.
    """
    normalisation, is_fixed = set[str](), config.model.trained in ("head", "lora")
    for prefix, module in network.named_modules():
        if isinstance(module, NORMALISATION):
            normalisation |= {f"{prefix}.{name}" for name in module.state_dict()}
    parameters = dict(network.named_parameters())
    names = []
    for name in network.state_dict():
        if name in parameters:
            is_shared = parameters[name].requires_grad
        else:
            is_shared = name in normalisation and not (is_fixed and name.startswith(IMAGE))
        is_local = strategy == "fedbn" and name in normalisation
        part = "backbone" if name.startswith(IMAGE) else "head"
        if is_shared and not is_local and aggregate in ("all", part):
            names.append(name)
    if not names:
        raise InputError(
            f"aggregate={aggregate} with strategy={strategy}: no trained array is left"
        )
    return names


def to_record(network: Network, names: Sequence[str]) -> ArrayRecord:
    """Return arrays of a network in NumPy's format."""
    state = network.state_dict()
    return ArrayRecord({name: Array(state[name].cpu().numpy()) for name in names})


def load_record(network: Network, record: Mapping[str, Array]) -> None:
    """Copy received arrays into a network in place; call `find_problem` first."""
    state = network.state_dict()
    for name, array in record.items():
        state[name].copy_(torch.from_numpy(array.numpy().copy()))


def describe_layout(record: Mapping[str, Array]) -> Layout:
    """Return shape and type of every array."""
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in record.items()}


def find_problem(record: Mapping[str, Array], layout: Layout) -> str:
    """Check names, shapes, format and values of received arrays; return the problem, or ""."""
    if unknown := [*layout.keys() ^ record.keys()]:
        return f"another architecture: {len(unknown)} arrays differ by name, e.g. {min(unknown)}"
    for name, array in record.items():
        try:
            values = array.numpy()  # never unpickles
        except Exception as error:
            return f"array {name} is unreadable ({type(error).__name__})"
        shape, dtype = layout[name]
        if values.shape != shape or values.dtype != dtype:
            sent = f"{values.dtype} {[*values.shape]}"
            return f"another architecture: {name} is {sent}, not {dtype} {[*shape]}"
        if not np.isfinite(values).all():
            return f"array {name} is not finite"
    return ""


def cast_record(record: Mapping[str, Array], layout: Layout) -> ArrayRecord:
    """Convert averaged arrays to the types of the network; counters are rounded."""
    arrays = {}
    for name, (_, dtype) in layout.items():
        values = record[name].numpy()
        is_counter = np.dtype(dtype).kind in "iu"
        values = np.rint(values) if is_counter else values
        arrays[name] = Array(np.asarray(values, dtype))  # of a counter NumPy made a scalar
    return ArrayRecord(arrays)


def digest_fixed(network: Network, names: Sequence[str]) -> str:
    """Return a digest of the image network's arrays that are neither shared nor trained.

    All centres need the same ones, since they do not receive them.
    """
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        if name.startswith(IMAGE) and not parameter.requires_grad and name not in names:
            digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    shapes = [(name, [*value.shape]) for name, value in network.state_dict().items()]
    return hashlib.sha256(digest.digest() + repr(shapes).encode()).hexdigest()[:32]
