"""Centre of a federation: trains on its rows and sends arrays to the server."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from skinmm.config import Config, from_mapping
from skinmm.config.outputs import LoggerConfig
from skinmm.config.remote_commands import FederateClientConfig
from skinmm.data.cohorts import list_positive_classes
from skinmm.data.datamodule import LesionData
from skinmm.data.record import RecordEncoder
from skinmm.data.splits import class_indices
from skinmm.errors import InputError, print_line
from skinmm.federated.arrays import (
    describe_layout,
    digest_fixed,
    find_problem,
    list_shared,
    load_record,
    to_record,
)
from skinmm.federated.privacy import (
    describe_column,
    hash_rows,
    localise,
    require_common_classes,
    require_rows,
    to_plain,
)
from skinmm.models.backbone import CUSTOM
from skinmm.models.checkpoint import KEY, Card, read_epochs, save_checkpoint
from skinmm.models.sources import resolve_image_size
from skinmm.training.fit import check_components
from skinmm.training.fold import build_classifier, load_best, train_fold
from skinmm.training.frozen_features import load_features
from skinmm.training.leak_guard import audit_split, require_usable_split
from skinmm.training.module import Classifier
from skinmm.training.run_folder import RunFolder
from skinmm.training.trackers import require_packages
from skinmm.training.trainer import build_trainer, run_stage, set_threads


@dataclass
class Round:
    """Training task of a client in one round.

    Attributes:
        number: of the round, from 1.
        arrays: the arrays that the server sent.
        agreement: classes, record encoder and settings that all centres share.
        mu: weight of the proximal term.
    """

    number: int
    arrays: ArrayRecord
    agreement: dict[str, Any]
    mu: float = 0.0


class ServerArrays(pl.Callback):
    """Callback that starts a round with the server's arrays and pulls the weights towards them.

    The gradient of the proximal term mu/2 |w - w_server|^2 (FedProx, Li et al. 2020,
    arXiv:1812.06127) is added before gradients are clipped.
    """

    def __init__(self, arrays: Mapping[str, Array], mu: float) -> None:
        self._arrays, self._mu = arrays, mu
        self._pulls: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def on_train_start(self, *modules: Any) -> None:
        """Replace the weights after a checkpoint was restored."""
        network = modules[1].network  # after the trainer
        load_record(network, self._arrays)
        named = network.named_parameters() if self._mu else ()
        self._pulls = [(p, p.detach().clone()) for n, p in named if n in self._arrays]

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Add the gradient of the proximal term."""
        for parameter, start in self._pulls:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._mu)


class Centre:
    """Data, network and run folder of one centre.

    Args:
        local: settings of the centre.
        key: secret of all centres for the audit; None: no audit.
        cache: folder to store frozen features in; None: a temporary one in the run folder.
    """

    def __init__(
        self, local: FederateClientConfig, key: bytes | None = None, cache: str | None = None
    ) -> None:
        self.name, self.folder, self.is_finished = local.name, Path(local.output).absolute(), False
        self._local, self._key, self._cache = local, key, cache
        self._config: Config | None = None
        self._data: LesionData
        self._module: Classifier | None = None
        self._names: list[str] = []

    def describe(self, question: dict[str, Any]) -> dict[str, Any]:
        """Read the cohort; return classes, columns and statistics for the agreement, never rows."""
        if self._config is None:
            config = localise(from_mapping(Config, question["config"]), self._local, self._cache)
            require_packages(config)
            check_components(config)
            size = resolve_image_size(config.model, CUSTOM)
            config = replace(config, model=replace(config.model, image_size=size))
            run = RunFolder(self.folder, config)
            run.require_unused()
            data = LesionData(config)
            data.setup()
            require_usable_split(data, run)
            audit_split(data, config)
            require_common_classes(data)
            require_rows(data)
            self._config, self._data = config, data
        data = self._data
        training = data.cohort.iloc[data.rows("train")]
        positive = [data.classes.index(name) for name in data.positive]
        facts = {
            "rows": float(len(data.cohort)),
            "prevalence": float(np.isin(data.targets, positive).mean()),
        }
        answer: dict[str, Any] = {
            "name": self.name,
            "classes": list(data.classes),
            "columns": [describe_column(c, training) for c in data.encoder.to_state()["columns"]],
            "facts": {name: facts[name] for name in facts if name in self._local.share},
        }
        if self._key and question["audit"]:
            answer["hashes"] = to_plain(hash_rows(data.cohort, question["audit"], self._key))
        return answer

    def train(self, task: Round) -> tuple[ArrayRecord, int]:
        """Train the epochs of a round; return the shared arrays and the number of training rows.

        A round that was trained before its answer was lost is answered again, not trained again.
        """
        module = self._prepare(task)
        rows, network = len(self._data.rows("train")), module.network
        folder = self._federation(task.agreement)
        before = find_checkpoint(folder)
        trained = folder / f"{task.number}-{digest_arrays(task.arrays)}.ckpt"
        if before == trained:
            load_state(module, before)
            print_line(f"round {task.number}: already trained; sending the stored answer again")
            return to_record(network, self._names), rows
        epochs = (read_epochs(before)[0] if before else 0) + task.agreement["local_epochs"]
        last = folder / "checkpoints" / "last.ckpt"
        last.unlink(missing_ok=True)
        trainer = build_trainer(self._config, folder, epochs)  # type: ignore[arg-type]
        trainer.callbacks.insert(0, ServerArrays(task.arrays, task.mu))  # type: ignore[attr-defined]
        run_stage(trainer.fit, module, self._data, ckpt_path=before, weights_only=True)
        os.replace(last, trained)  # noqa: PTH105 - a killed round starts again from its beginning
        if before:
            before.unlink()
        print_line(f"round {task.number}: trained to epoch {epochs} on {rows} rows")
        return to_record(network, self._names), rows

    def finish(self, task: Round) -> dict[str, float]:
        """Calibrate and evaluate the final network on this centre's rows; write its run folder."""
        module = self._prepare(task)
        shared, config = task.agreement, self._config
        if last := find_checkpoint(self._federation(shared)):  # arrays that stay local
            load_state(module, last)
        load_record(module.network, task.arrays)
        weights = {name: value.cpu() for name, value in module.network.state_dict().items()}

        def adopt(
            trainer: pl.Trainer, module: Classifier, _: LesionData, run: RunFolder
        ) -> tuple[Card, dict[str, Any]]:
            module.network.load_state_dict(weights)
            epoch = shared["rounds"] * shared["local_epochs"] - 1
            content = {"state_dict": module.state_dict(), "epoch": epoch, KEY: asdict(module.card)}
            save_checkpoint(content, run.best_checkpoint)
            names = ("id", "strategy", "aggregate", "rounds", "local_epochs", "epsilon")
            facts = {name: shared[name] for name in names if name in shared}
            return load_best(trainer, module, run), {"federation": facts}

        run = RunFolder(self.folder, config)  # type: ignore[arg-type]
        metrics = train_fold(config, run, self._data, adopt)  # type: ignore[arg-type]
        shutil.rmtree(self.folder / "federation", ignore_errors=True)
        self.is_finished = True
        auroc = metrics["test"]["metrics"]["auroc"]["value"]
        return {"auroc": auroc} if "auroc" in self._local.share and auroc is not None else {}

    def _federation(self, agreement: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(str(agreement["id"]).encode()).hexdigest()[:16]  # never a path
        folder = self.folder / "federation" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _prepare(self, task: Round) -> Classifier:
        """Build the agreed network once, and check the received arrays."""
        agreement = task.agreement
        if self._config is None:  # started again, while the server still waits for a round
            self.describe({"config": agreement["config"], "audit": []})
        config: Any = self._config
        if self._module is None:
            folder = self._federation(agreement)
            cache = config.model.cache or str(folder / "features")
            config = replace(config, model=replace(config.model, cache=cache))
            adopt_agreement(self._data, agreement)
            pl.seed_everything(config.seed, workers=False, verbose=False)
            trainer = build_trainer(replace(config, logger=LoggerConfig("none")), folder, 1)
            set_threads(has_images=self._data.decodes_images)
            module = build_classifier(config, self._data)
            self._names = list_shared(
                module.network, config, agreement["strategy"], agreement["aggregate"]
            )
            if digest_fixed(module.network, self._names) != agreement["fixed"]:
                raise InputError(
                    "the frozen image network differs from the server's; give the "
                    "same weights with pretrained=FILE"
                )
            load_features(config, self._data, module.network, trainer, RunFolder(folder, config))
            self._module, self._config = module, config
        record = to_record(self._module.network, self._names)
        if problem := find_problem(task.arrays, describe_layout(record)):
            raise InputError(f"the server sent {problem}")
        return self._module


def find_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint `ROUND-DIGEST.ckpt` of the latest trained round."""
    files = folder.glob("*-*.ckpt")
    return max(files, key=lambda file: int(file.name.partition("-")[0]), default=None)


def load_state(module: Classifier, checkpoint: Path) -> None:
    """Load the weights of a round's checkpoint into a module."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])


def adopt_agreement(data: LesionData, agreement: Mapping[str, Any]) -> None:
    """Set the record encoder and the classes that the centres agreed on."""
    classes = tuple(agreement["classes"])
    counts = dict(zip(data.classes, data.natural_prior * len(data.training_targets), strict=True))
    shares = np.array([max(counts.get(name, 0.0), 1.0) for name in classes])
    if classes != data.classes:  # a class that this centre lacks counts as one row
        data.natural_prior = shares / shares.sum()
        data.targets = class_indices(data.cohort["target"], classes)
        data.classes = classes
        data.positive = list_positive_classes(classes, data.config.data)
    data.encoder = RecordEncoder.from_state({"columns": agreement["columns"]})


def digest_arrays(record: Mapping[str, Array]) -> str:
    """Return a digest of arrays by name."""
    digest = hashlib.sha256()
    for name, array in record.items():
        digest.update(name.encode() + array.data)
    return digest.hexdigest()[:16]


def build_app(centre: Centre) -> ClientApp:
    """Return Flower's client application of a centre."""
    app = ClientApp()

    def parse(message: Message) -> Round:
        config: Any = message.content["config"]
        arrays: Any = message.content["arrays"]
        number, mu = int(config["server-round"]), float(config.get("proximal-mu", 0.0))
        return Round(number, arrays, json.loads(str(config["agreement"])), mu)

    @app.query("describe")
    def describe(message: Message, _: Context) -> Message:
        question = json.loads(str(message.content["config"]["question"]))
        answer = ConfigRecord({"answer": json.dumps(centre.describe(question))})
        return Message(RecordDict({"config": answer}), reply_to=message)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        arrays, rows = centre.train(parse(message))
        content: Any = {"arrays": arrays, "metrics": MetricRecord({"num-examples": rows})}
        return Message(RecordDict(content), reply_to=message)

    @app.query("finish")
    def finish(message: Message, _: Context) -> Message:
        metrics = MetricRecord({"finished": 1, **centre.finish(parse(message))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
