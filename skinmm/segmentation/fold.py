"""One fold of a network that draws masks: assembled, trained, judged."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from skinmm.config import Config, to_mapping, write_config
from skinmm.files import remove_partials
from skinmm.models.checkpoint import Card, update_card
from skinmm.models.segmentation import build_segmenter
from skinmm.report import write_report
from skinmm.segmentation.data import JUDGED, MaskData
from skinmm.segmentation.module import MaskLearner
from skinmm.segmentation.report import mean_overlaps, overlaps
from skinmm.training import run_folder
from skinmm.training.calibrate import SCHEMA
from skinmm.training.fold import interruptible, take_best
from skinmm.training.leak_guard import refuse_another_split
from skinmm.training.trainer import build_trainer, device_name, log_test

PARTS = ("val", "test")


@dataclass(frozen=True)
class MaskFold:
    """Everything that the run of one fold needs, checked, with nothing written yet."""

    config: Config
    run: Path
    data: MaskData
    module: MaskLearner
    trainer: pl.Trainer

    @classmethod
    def assemble(cls, config: Config, run: Path) -> "MaskFold":
        """Reads the cohort, and builds network and trainer.

        Raises:
            InputError: data, weights or a machine that cannot be used.
        """
        pl.seed_everything(config.seed, workers=False, verbose=False)
        trainer = build_trainer(config, run)
        data = MaskData(config)
        if config.resume:
            refuse_another_split(run / "cohort.csv", data.cohort, "part")
        network = build_segmenter(config, pretrained=True)
        card = Card(
            config=to_mapping(replace(config, resume=None, overwrite=False)),
            classes=[],
            positive=[],
            encoder={},
            initialisation=network.origin,
            prior={},
            preprocess=list(config.data.preprocess),
        )
        return cls(config, run, data, MaskLearner(network, card, config), trainer)

    def run_through(self) -> dict[str, Any]:
        """Trains, judges and reports; a resumed run goes on from its last checkpoint.

        Returns:
            The content of metrics.json; in another process than rank 0 nothing.

        Raises:
            InputError: an image or a mask that cannot be read.
            KeyboardInterrupt: after a usable `checkpoints/last.ckpt` was left.
        """
        last = self.run / "checkpoints" / "last.ckpt"
        resume = last if self.config.resume and last.is_file() else None
        if self.trainer.is_global_zero:
            remove_partials(self.run)
            facts = run_folder.environment(device_name(self.trainer))
            write_config(self.run / "config.yaml", self.config)
            run_folder.write_cohort(self.run, self.data.cohort)
            run_folder.write_json(self.run / "environment.json", facts)
            train = len(self.data.training_targets)
            val, test = (len(self.data.rows(part)) for part in PARTS)
            print(f"cohort: {train} rows to train, {val} to validate, {test} to test")  # noqa: T201
            name = self.config.segmenter.name
            print(f"{name}: {self.module.card.initialisation}", flush=True)  # noqa: T201
        interruptible(self.trainer.fit, self.module, self.data, ckpt_path=resume, weights_only=True)
        best, _ = take_best(self.trainer, self.module, self.run)
        scores = {part: self._scores(part) for part in PARTS}
        return self._conclude(best, scores) if self.trainer.is_global_zero else {}

    def _scores(self, part: str) -> pd.DataFrame:
        """Dice, Jaccard and both areas (shares of the picture) of every row."""
        interruptible(
            self.trainer.test, self.module, self.data.evaluation_loader(part), verbose=False
        )
        areas = [values.cpu().numpy().astype(np.float64) for values in self.module.tested]
        cohort = self.data.cohort.iloc[self.data.rows(part)].reset_index(drop=True)
        _, drawn, true = (area / JUDGED**2 for area in areas)
        return pd.concat([cohort[["image_id", "patient_id"]], overlaps(*areas)], axis=1).assign(
            area=drawn, area_true=true
        )

    def _conclude(self, best: Path, scores: dict[str, pd.DataFrame]) -> dict[str, Any]:
        options = self.config.evaluation
        metrics: dict[str, Any] = {"schema": SCHEMA, "task": self.config.task}
        metrics["initialisation"] = self.module.card.initialisation
        (self.run / "predictions").mkdir(exist_ok=True)
        for part, table in scores.items():
            table.to_csv(self.run / "predictions" / f"{part}.csv", index=False, float_format="%.9g")
            metrics[part] = mean_overlaps(
                table[["dice", "jaccard"]],
                table["patient_id"].to_numpy(),
                resamples=options.resamples,
                confidence=options.confidence,
            )
        update_card(best, summary=metrics["test"])
        log_test(self.trainer, metrics["test"])
        run_folder.write_json(self.run / "metrics.json", metrics)
        write_report(self.run)
        return metrics
