"""One fold from its rows to its report: assembled, trained, judged."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from skinmm.config import Config, build_component, to_mapping, write_config
from skinmm.data.audit import audit
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError, one_line
from skinmm.evaluation.drift import describe_columns
from skinmm.evaluation.predictions import Predictions
from skinmm.files import remove_partials
from skinmm.models.backbone import synchronise_batchnorm
from skinmm.models.checkpoint import Card, average_checkpoints, load_card, update_card
from skinmm.models.fusion import FUSIONS
from skinmm.models.lesion_finder import LesionFinder
from skinmm.models.network import build_network
from skinmm.report import write_report
from skinmm.training import calibrate, run_folder
from skinmm.training.callbacks import SEVERAL
from skinmm.training.explain_mistakes import explain_mistakes
from skinmm.training.frozen_features import keep_features
from skinmm.training.leak_guard import refuse_another_split, seen_before
from skinmm.training.losses import LOSSES, Loss
from skinmm.training.missing_columns import MissingColumns
from skinmm.training.module import Classifier, Learner
from skinmm.training.trainer import (
    build_trainer,
    device_name,
    expected_duration,
    log_test,
    share_run,
)

THREADS: Final = torch.get_num_threads()
PLAIN: Final = 2  # dimensions of kept features that are a vector an image


@dataclass(frozen=True)
class Fold:
    """Everything that the run of one fold needs, checked, with nothing written yet."""

    config: Config
    run: Path
    data: LesionData
    module: Classifier
    trainer: pl.Trainer
    findings: dict[str, Any]
    shared: Path

    @classmethod
    def assemble(cls, config: Config, run: Path, shared: Path | None = None) -> "Fold":
        """Reads the cohort, audits its split, and builds network and trainer.

        Args:
            config: of this fold.
            run: its folder.
            shared: the folder of all folds; None: the same.

        Raises:
            InputError: data, weights or a machine that cannot be used, or a split that leaks.
        """
        pl.seed_everything(config.seed, workers=False, verbose=False)
        _refuse_another_finder(config, shared or run)
        trainer = build_trainer(config, run)
        inputs = FUSIONS[config.fusion.name].inputs
        # Layers of a record are too small to share out: threads would only wait for each other.
        # So are those above kept features.
        torch.set_num_threads(THREADS if "image" in inputs else 1)
        data = LesionData(config, inputs)
        if config.resume:
            refuse_another_split(run / "cohort.csv", data.cohort, "part")
            if shared:
                first = run_folder.fold_folder(shared, 0) / "cohort.csv"
                refuse_another_split(first, data.cohort, "fold")
        _refuse_one_sided(data)
        findings = _audited(data, config)
        return cls(config, run, data, _module(config, data), trainer, findings, shared or run)

    def run_through(self) -> dict[str, Any]:
        """Trains, judges and reports; a resumed run goes on from its last checkpoint.

        Returns:
            The content of metrics.json; in another process than rank 0 nothing.

        Raises:
            InputError: an image that cannot be read.
            KeyboardInterrupt: after a usable `checkpoints/last.ckpt` was left.
        """
        last = self.run / "checkpoints" / "last.ckpt"
        resume = last if self.config.resume and last.is_file() else None
        folder = Path(self.config.model.cache or self.shared / "features")
        device = self.trainer.strategy.root_device
        keep_features(self.config, self.data, self.module.network, device, folder)
        if self.data.features is not None and self.data.features.ndim == PLAIN:
            torch.set_num_threads(1)
        if self.trainer.is_global_zero:
            self._write_facts()
            self._announce()
            if self.config.resume and not resume:
                print("no checkpoint was written yet: the run begins again")  # noqa: T201
        # Our own checkpoints hold plain data, so they load as such.
        interruptible(self.trainer.fit, self.module, self.data, ckpt_path=resume, weights_only=True)
        return self._conclude()

    def _write_facts(self) -> None:
        remove_partials(self.run)
        write_config(self.run / "config.yaml", self.config)
        run_folder.write_cohort(self.run, self.data.cohort)
        run_folder.write_json(self.run / "audit.json", self.findings)
        run_folder.write_json(
            self.run / "environment.json", run_folder.environment(device_name(self.trainer))
        )

    def _announce(self) -> None:
        """Says before the first epoch what is about to be trained, from what, and for how long."""
        data, card, options = self.data, self.module.card, self.config.trainer
        sizes = [len(data.training_targets), len(data.rows("val")), len(data.rows("test"))]
        parts = "cohort: {} rows to train, {} to validate, {} to test; classes: {}"
        print(parts.format(*sizes, ", ".join(data.classes)))  # noqa: T201
        name = f"image network {self.config.model.name}: " if self.module.network.image else ""
        print(f"{name}{card.initialisation}")  # noqa: T201
        for warning in self._warnings():
            print(f"WARNING: {warning}", file=sys.stderr)  # noqa: T201
        # A SyncBatchNorm would wait for the other processes, which do not take these steps.
        if options.progress and not options.sync_batchnorm:
            duration = expected_duration(self.module, data, self.trainer, options.max_epochs)
            print(f"expected duration: about {duration} to train", flush=True)  # noqa: T201

    def _warnings(self) -> list[str]:
        found = [*self.findings["warnings"]]
        if self.findings["leaks"]:
            found.append(f"the split leaks (data.allow_leaks): {'; '.join(self.findings['leaks'])}")
        if self.module.card.initialisation.startswith("FROM SCRATCH"):
            found.append(f"the image network starts {self.module.card.initialisation}")
        corrections = [self.data.sampler.corrects, self.module.loss.corrects]
        if all(corrections):
            found.append(
                f"the class imbalance is corrected more than once: {' and '.join(corrections)}"
            )
        return found

    def _conclude(self) -> dict[str, Any]:
        """Tests the best network of the run, and fits what follows validation."""
        best, card = take_best(self.trainer, self.module, self.run)
        curve = MissingColumns(self.data.blank) if self.module.network.record else None
        val, test = self._outcomes("val"), self._outcomes("test", curve)
        if not self.trainer.is_global_zero:
            return {}
        verdict = calibrate.decide(
            val,
            test,
            classes=card.classes,
            positive=card.positive,
            prior=card.prior,
            config=self.config.evaluation,
        )
        entries = calibrate.card_entries(verdict)
        update_card(best, **entries)  # which explanations of mistakes are made from
        names = {"classes": card.classes, "positive": card.positive}
        # The state of `ood` is thousands of numbers that no reader wants.
        told = {name: state for name, state in entries.items() if name != "ood"}
        facts = {"initialisation": card.initialisation, **names, **told}
        predictions = {"test": verdict.test, "val": verdict.val}
        if curve:
            predictions |= curve.predictions(test, verdict)
        if self.config.report.pictures and self.config.report.explain:
            self._explain(best, verdict)
        metrics = calibrate.write_results(self.run, predictions, self.config.evaluation, facts)
        inputs = _distributions(self.data, verdict.test)
        update_card(best, summary=metrics["test"], inputs=inputs)
        log_test(self.trainer, metrics["test"])
        # Last: a fold that has it is finished, and is not resumed; only its page may be made again.
        run_folder.write_json(self.run / "metrics.json", metrics)
        write_report(self.run)
        share_run(self.trainer, self.run, names=self.config.logger.images)
        return metrics

    def _explain(self, best: Path, verdict: calibrate.Verdict) -> None:
        """Pictures that cannot be made are not worth a run."""
        torch.set_num_threads(THREADS)  # the whole network looks again
        try:
            limit = verdict.threshold.value
            explain_mistakes(self.run, best, verdict.test, limit, self.data.cohort)
        except Exception as error:
            said = f"{type(error).__name__}: {one_line(error)}"
            print(f"WARNING: the mistakes are not explained: {said}", file=sys.stderr)  # noqa: T201

    def _outcomes(self, part: str, watcher: pl.Callback | None = None) -> calibrate.Raw:
        loader = self.data.evaluation_loader(part)
        self.trainer.callbacks += [watcher] if watcher else []  # type: ignore[attr-defined]
        interruptible(self.trainer.test, self.module, loader, verbose=False)
        logits, targets, features = (values.cpu() for values in self.module.tested)
        probabilities = logits.double().softmax(dim=1).numpy()
        cohort = self.data.cohort.iloc[self.data.rows(part)]
        return calibrate.Raw(cohort, targets.numpy(), probabilities, features.numpy())


def take_best(trainer: pl.Trainer, module: Learner, run: Path) -> tuple[Path, Card]:
    """Gives the module the best weights of its run, and says where they are and what of them."""
    best = run / "checkpoints" / "best.ckpt"
    several = sorted(best.parent.glob(SEVERAL), key=_epoch)
    if trainer.is_global_zero and several:
        average_checkpoints(several, best)
    trainer.strategy.barrier()
    card, weights = load_card(best)
    module.network.load_state_dict(weights)
    return best, card


def _distributions(data: LesionData, test: Predictions) -> dict[str, Any]:
    """What a model's later use is compared with: training records, answers to unseen rows."""
    training = data.cohort[data.cohort["image_id"].isin(data.fitted_on)]
    answers = pd.DataFrame({"malignancy": test.malignancy})
    if test.ood is not None:
        answers["ood"] = test.ood
    return describe_columns(training, data.encoder.columns) | describe_columns(answers, [*answers])


def _epoch(path: Path) -> int:
    return int(path.stem.rpartition("=")[2])


def interruptible(stage: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Runs a stage of the trainer until Ctrl-C.

    Lightning turns that into an exit, after the callbacks have saved what they save.
    """
    try:
        stage(*args, **options)
    except SystemExit as error:
        raise KeyboardInterrupt from error


def _refuse_another_finder(config: Config, run: Path) -> None:
    """All folds and epochs of a run find its lesions with one and the same network.

    Args:
        config: of a fold.
        run: the folder of all folds.

    Raises:
        InputError: the checkpoint that `data.segmenter` names is another one by now.
    """
    if not config.data.segmenter:
        return
    begun = sorted(run.rglob("last.ckpt"))[:1] if config.resume else []
    found = LesionFinder.load(Path(config.data.segmenter)).digest
    for card in (load_card(path)[0] for path in begun):
        if card.segmenter and card.segmenter["digest"] != found:
            raise InputError(
                f"data.segmenter={config.data.segmenter}: the run was begun with another "
                f"checkpoint, whose SHA-256 is {card.segmenter['digest']}; put that one there again"
            )


def _refuse_one_sided(data: LesionData) -> None:
    """Every part needs both kinds: to learn, to choose a threshold, to be judged."""
    columns = [data.classes.index(name) for name in data.positive]
    for part in ("train", "val", "test"):
        malignant = np.isin(data.targets[data.rows(part)], columns)
        if malignant.all() or not malignant.any():
            kind = "benign" if malignant.any() else "malignant"
            raise InputError(
                f"no {kind} row among the {len(malignant)} of part '{part}'; "
                "use fewer data.folds, another data.split_seed or a larger cohort"
            )


def _audited(data: LesionData, config: Config) -> dict[str, Any]:
    findings = audit(
        data.cohort,
        positive=data.positive,
        columns=config.data.columns,
        fitted_on=data.fitted_on,
    )
    findings["leaks"] += seen_before(config.model, data.cohort)
    if findings["leaks"] and not config.data.allow_leaks:
        raise InputError(
            f"the split leaks: {'; '.join(findings['leaks'][:3])}; mend that, or set "
            "data.allow_leaks=true (audit.json and the report will say so)"
        )
    return {"allow_leaks": config.data.allow_leaks, **findings}


def _module(config: Config, data: LesionData) -> Classifier:
    classes = list(data.classes)
    network = build_network(config, data.record_widths, len(classes), pretrained=True)
    if config.trainer.sync_batchnorm:
        synchronise_batchnorm(network)
    counts = torch.bincount(torch.from_numpy(data.training_targets), minlength=len(classes))
    loss = build_component(LOSSES, "loss", config.loss, counts=counts)
    card = Card(
        # Where a run was resumed, and whether it replaced one, says nothing of its network.
        config=to_mapping(replace(config, resume=None, overwrite=False)),
        classes=classes,
        positive=list(data.positive),
        encoder=data.encoder.to_state(),
        initialisation=network.image.origin if network.image else "no image network",
        prior={"trained": _trained_prior(data, loss), "deployed": data.natural_prior.tolist()},
        preprocess=list(data.steps),
        segmenter=data.finder.state if data.finder else None,
    )
    return Classifier(network, loss, card, config)


def _trained_prior(data: LesionData, loss: Loss) -> list[float]:
    """Class shares as the loss saw them: the sampler's draw times the class weights."""
    drawn = data.sampler.prior(data.training_targets)
    share = np.zeros(len(data.classes))
    share[: len(drawn)] = drawn
    share *= loss.weights.numpy()
    normalised: list[float] = (share / share.sum()).tolist()
    return normalised
