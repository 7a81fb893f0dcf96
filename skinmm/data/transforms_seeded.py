"""How a transform is applied; what it is made of need not be imported for that."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Transform = Callable[[Any], Any]
"""Of a picture, or of a pair of tv_tensors, picture and mask, which are moved alike."""

T = TypeVar("T")


def seeded(transform: Transform, image: T, seed: int) -> T:
    """Applies a random transform as a function of the seed alone, and leaves no trace of it.

    The CPU's generator is all that transforms draw from; `torch.manual_seed` would also reseed
    the GPU's, and with it the network's dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented: T = transform(image)
    return augmented
