"""What tests of the torch rooms share: settings and a cohort so small that a run takes a moment."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from skinmm.config import (
    Component,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    build_component,
    to_mapping,
)
from skinmm.config.schema import TrainerConfig
from skinmm.data.datamodule import LesionData
from skinmm.models.checkpoint import Card
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import build_network
from skinmm.training.losses import LOSSES
from skinmm.training.module import Classifier
from skinmm.training.trainer import build_trainer, silence_libraries


def micro_config(fusion: str = "concat", data: DataConfig | None = None, **trainer: Any) -> Config:
    """A micro-model on 32-pixel pictures of the included cohort, in 32 bit, without processes.

    Args:
        fusion: name of the fusion block.
        data: another cohort.
        trainer: settings of the trainer.
    """
    plain = TrainerConfig(batch_size=16, workers=0, max_epochs=1, precision="32", progress=False)
    return Config(
        data=data or DataConfig(),
        model=ModelConfig(name="test_efficientnet", pretrained="false", image_size=32),
        fusion=Component(fusion),
        tabular=Component("mlp", {"hidden": [8]}),
        loss=LossConfig("cross_entropy"),
        sampler=Component("shuffle"),
        augment=Component("standard"),
        optimizer=OptimizerConfig(name="adamw"),
        trainer=replace(plain, **trainer),
    )


def with_model(config: Config, **model: Any) -> Config:
    """The configuration with other settings of the image network."""
    return replace(config, model=replace(config.model, **model))


def table_cohort(root: Path, patients: int = 60) -> DataConfig:
    """A cohort of records without a single image: two rows a patient, every third malignant."""
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(patients) % 3 == 0, 2).astype(int)
    rows = {
        "image_name": [f"I{row}" for row in range(2 * patients)],
        "patient_id": [f"P{row // 2}" for row in range(2 * patients)],
        "age_approx": np.round(rng.normal(50 + 10 * target, 8)),
        "sex": rng.choice(["male", "female"], 2 * patients),
        "anatom_site_general_challenge": rng.choice(["torso", "head/neck"], 2 * patients),
        "target": target,
    }
    pd.DataFrame(rows).to_csv(root / "cohort.csv", index=False)
    return DataConfig(name="csv", root=str(root))


def micro_classifier(config: Config, data: LesionData) -> Classifier:
    """An untrained network for a cohort, the same at every call."""
    torch.manual_seed(0)
    classes = list(data.classes)
    network = build_network(config, data.record_widths, len(classes), pretrained=False)
    loss = build_component(
        LOSSES, "loss", config.loss, counts=torch.ones(len(classes), dtype=torch.long)
    )
    card = Card(
        config=to_mapping(config),
        classes=classes,
        positive=list(data.positive),
        encoder=data.encoder.to_state(),
        initialisation="from scratch",
        prior={"trained": [0.5, 0.5], "deployed": [0.5, 0.5]},
    )
    return Classifier(network, loss, card, config)


def read_data(config: Config, inputs: frozenset[str]) -> LesionData:
    """A data module whose cohort is read and split."""
    data = LesionData(config, inputs)
    data.setup()
    return data


def parts(config: Config, run: Path) -> tuple[Classifier, LesionData, pl.Trainer]:
    """Everything a fold needs to train, without its files."""
    silence_libraries()
    run.mkdir(exist_ok=True)
    data = read_data(config, FUSIONS[config.fusion.name].inputs)
    return micro_classifier(config, data), data, build_trainer(config, run)
