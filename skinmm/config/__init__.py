"""Typed configuration of training and prediction; `commands` has that of the other commands."""

from skinmm.config.commands import PredictConfig
from skinmm.config.load import (
    flatten,
    from_mapping,
    read_config,
    read_costs,
    resume_config,
    to_mapping,
)
from skinmm.config.optimisation import LossConfig, OptimizerConfig, ScheduleConfig
from skinmm.config.outputs import EvaluationConfig
from skinmm.config.registry import Registry
from skinmm.config.schema import (
    Config,
    DataConfig,
    ExtraCohort,
    ModelConfig,
    name_cohort,
    name_relative,
)
from skinmm.config.setting import Component, build_component, check_component, keys_with

__all__ = [
    "Component",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExtraCohort",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PredictConfig",
    "Registry",
    "ScheduleConfig",
    "build_component",
    "check_component",
    "flatten",
    "from_mapping",
    "keys_with",
    "name_cohort",
    "name_relative",
    "read_config",
    "read_costs",
    "resume_config",
    "to_mapping",
]
