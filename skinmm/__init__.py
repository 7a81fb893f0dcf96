"""Multimodal skin-lesion classification, checked for leaks, with calibration and intervals."""

from importlib import import_module
from typing import Any, Final

__version__ = "0.3.0.dev0"

_MODULES: Final = {
    "skinmm.cli.api": ("build_config", "compare", "evaluate", "fit", "load_cohort", "load_run"),
    "skinmm.config.schema": ("Config",),
    "skinmm.training.results": ("Comparison", "Evaluation", "Run"),
    "skinmm.config.registry": (
        *("register_adapter", "register_augment", "register_backbone", "register_encoder"),
        *("register_fusion", "register_head", "register_loss", "register_sampler"),
        "register_views",
    ),
    "skinmm.errors": ("InputError",),
    "skinmm.predict": ("Predictor",),
}
"""Module -> names of the API that it defines."""
_HOMES: Final = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a name of the API on first use, as `import skinmm` must be fast."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the API, for completion."""
    return [*__all__, "__version__"]
