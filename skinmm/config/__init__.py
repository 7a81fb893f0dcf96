"""The typed configuration: below it nobody sees OmegaConf, and nothing in it imports torch."""

from skinmm.config.components import build, verify
from skinmm.config.mapping import (
    check,
    explain_unknown,
    from_mapping,
    one_line,
    read_config,
    to_mapping,
    unknown_key,
    write_config,
)
from skinmm.config.resuming import resumed
from skinmm.config.schema import (
    AuditConfig,
    Component,
    Config,
    DataConfig,
    EvaluationConfig,
    ExploreConfig,
    ExtraCohort,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    PackConfig,
    PredictConfig,
    ScheduleConfig,
    TrainerConfig,
)

__all__ = [
    "AuditConfig",
    "Component",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExploreConfig",
    "ExtraCohort",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackConfig",
    "PredictConfig",
    "ScheduleConfig",
    "TrainerConfig",
    "build",
    "check",
    "explain_unknown",
    "from_mapping",
    "one_line",
    "read_config",
    "resumed",
    "to_mapping",
    "unknown_key",
    "verify",
    "write_config",
]
