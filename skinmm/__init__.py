"""Multimodal skin-lesion classification, checked for leaks, with calibration and intervals."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """Import `Predictor` on first use, as it needs PyTorch and `import skinmm` must be fast."""
    if name == "Predictor":
        return import_module("skinmm.predict").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
