"""Types of the names that `skinmm` imports on first use."""

from skinmm.cli.api import build_config, compare, evaluate, fit, load_cohort, load_run
from skinmm.config import Config
from skinmm.config.registry import (
    register_adapter,
    register_augment,
    register_backbone,
    register_encoder,
    register_fusion,
    register_head,
    register_loss,
    register_sampler,
    register_views,
)
from skinmm.errors import InputError
from skinmm.predict import Predictor
from skinmm.training.results import Comparison, Evaluation, Run

__all__ = [
    "Comparison",
    "Config",
    "Evaluation",
    "InputError",
    "Predictor",
    "Run",
    "build_config",
    "compare",
    "evaluate",
    "fit",
    "load_cohort",
    "load_run",
    "register_adapter",
    "register_augment",
    "register_backbone",
    "register_encoder",
    "register_fusion",
    "register_head",
    "register_loss",
    "register_sampler",
    "register_views",
]
__version__: str
