"""Optional results of a trained fold: curves of missing columns, and explanations."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Float64, Int, Int64
from PIL import Image
from torch import Tensor

from skinmm.config import Config
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import EmptyRecord
from skinmm.data.lesions import SEPARATOR, explode_images
from skinmm.errors import one_line, warn
from skinmm.evaluation.predictions import Predictions, find_confident_mistakes
from skinmm.images.source import read_source
from skinmm.models.checkpoint import update_card
from skinmm.models.network import Network, full_precision
from skinmm.predict.embedder import EmbeddingIndex, pool_tokens
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.explain import Explainer, explain_case
from skinmm.predict.loading import CaseImage
from skinmm.report.blocks import join_pictures
from skinmm.training.calibrate import FittedDecision, SplitOutputs
from skinmm.training.module import RowCollector
from skinmm.training.progress import print_stage
from skinmm.training.run_folder import RunFolder, write_json
from skinmm.training.trainer import run_stage, set_threads

CURVE_POINTS: Final = 4  # of the missing-column curve, besides the complete record
BACKGROUND: Final = 32  # validation rows from which explanations start
SIDE: Final = 240  # longer side of the explained images in the report, pixels


@dataclass(frozen=True)
class TrainedFold:
    """A trained and calibrated fold before its evaluation.

    The network has the weights of the best epoch. `test` are the outputs of the test split, and
    `predictions` are by the name of their part.
    """

    config: Config
    run: RunFolder
    data: LesionData
    trainer: pl.Trainer
    network: Network
    test: SplitOutputs
    decision: FittedDecision
    predictions: dict[str, Predictions]


class MissingColumnsPass(pl.LightningModule):
    """Prediction of rows with missing record columns; image features are computed once.

    Attributes:
        counts: numbers of missing columns.
        probabilities: (n, counts, classes) of the last test, in order of rows.
    """

    probabilities: Tensor

    def __init__(self, network: Network, empty: EmptyRecord) -> None:
        super().__init__()
        self.network = network
        self._empty = empty
        columns = len(empty.widths)
        points = np.linspace(0, columns, min(columns, CURVE_POINTS) + 1)[1:]
        self.counts = np.unique(points.round().astype(int)).tolist()
        self._collector = RowCollector(("logits",))

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Collect the log-probabilities of a batch."""
        image, record = batch.get("image"), batch["record"]
        if image is not None:
            with full_precision(self.network.device.type):
                image = self.network.encode_image(image, batch.get("has_image"))
        order = removal_order(batch["row"].cpu().numpy(), len(self._empty.widths))
        records = [self._empty.fill(record, order < count) for count in self.counts]
        logits = [self.network.predict(image, record)[0] for record in records]
        self._collector.update(batch["row"], torch.stack(logits, dim=1))

    def on_test_epoch_end(self) -> None:
        """Gather the rows of all ranks."""
        (logits,) = self._collector.take()
        self.probabilities = logits.double().softmax(dim=2).cpu()


def predict_missing_columns(fold: TrainedFold) -> dict[str, Predictions]:
    """Predict the test rows with 1, 2, ... columns missing: `missing_1_of_3` and so on."""
    if not fold.network.record:
        return {}
    module = MissingColumnsPass(fold.network, fold.data.empty_record)
    run_stage(fold.trainer.test, module, fold.data.evaluation_loader("test"), verbose=False)
    predictions = {}
    for count, probabilities in zip(module.counts, module.probabilities.unbind(1), strict=True):
        outputs = replace(fold.test, probabilities=probabilities.numpy())
        name = f"missing_{count}_of_{len(fold.data.record_widths)}"
        predictions[name] = fold.decision.calibrate(outputs)
    return predictions


def removal_order(rows: Int[np.ndarray, " b"], columns: int) -> Int64[np.ndarray, "b columns"]:
    """Return a random permutation for each row: when each column is removed."""
    orders = [np.random.default_rng(int(row)).permutation(columns) for row in rows]
    return np.array(orders, dtype=np.int64).reshape(len(rows), columns)


def store_background(fold: TrainedFold) -> dict[str, Predictions]:
    """Store inputs of validation rows in the checkpoint, as the background of explanations."""
    if fold.trainer.is_global_zero:
        rows = fold.predictions["val"]
        background = sample_background(fold.data, fold.network, "val", rows.malignancy)
        update_card(fold.run.best_checkpoint, background=background)
    return {}


def sample_background(
    data: LesionData, network: Network, part: str, malignancy: Float64[np.ndarray, " n"]
) -> dict[str, Tensor]:
    """Return the inputs of a sample of the rows of a part.

    The rows are at equal steps of the ranking by probability, so that their mean is close to that
    of the whole part.
    """
    order = np.argsort(malignancy, kind="stable")
    steps = (np.arange(BACKGROUND) + 0.5) / BACKGROUND * len(order)
    rows = order[np.unique(steps.astype(np.int64))]
    inputs = dict[str, list[Tensor]]()
    with torch.inference_mode(), full_precision(network.device.type):
        for batch in data.evaluation_loader(part, rows):
            if "record" in batch:
                inputs.setdefault("record", []).append(batch["record"])
            if (image := batch.get("image")) is not None:
                has_image = batch.get("has_image")
                types = None if has_image is None else has_image.to(network.device)
                features = network.encode_image(image.to(network.device), types)
                inputs.setdefault("image", []).append(features.cpu().bfloat16())
    return {name: torch.cat(parts).clone() for name, parts in inputs.items()}


def store_index(fold: TrainedFold) -> dict[str, Predictions]:
    """Store names and embeddings of the training images in the checkpoint (`model.index`)."""
    if fold.trainer.is_global_zero and fold.config.model.index:
        print_stage(fold.config, "storing names and embeddings of the training images")
        update_card(fold.run.best_checkpoint, index=build_index(fold.data, fold.network))
    return {}


def build_index(data: LesionData, network: Network) -> dict[str, Any]:
    """Return names, diagnoses and embeddings of the training images, for a checkpoint."""
    if data.features is not None:
        rows = explode_images(data.cohort.iloc[data.used_rows])
        is_training = (rows["part"] == "train").to_numpy()
        parts = [pool_tokens(torch.from_numpy(data.features[is_training]))]
        table = rows[is_training]
    else:
        table, parts = explode_images(data.cohort.iloc[data.rows("train")]), []
        encode = network.get_submodule("image")
        with torch.inference_mode(), full_precision(network.device.type):
            for batch in data.image_loader(data.rows("train")):
                parts.append(pool_tokens(encode(batch["image"].to(network.device))).cpu())
    diagnosis = table["diagnosis"].fillna(table["target"].map(str))
    table = pd.DataFrame({"image_id": table["image_id"], "diagnosis": diagnosis})
    vectors = torch.cat(parts).float().numpy()
    return EmbeddingIndex(vectors, table.reset_index(drop=True), {}).to_state()


def explain_mistakes(fold: TrainedFold) -> dict[str, Predictions]:
    """Explain the most confident mistakes if the report shows images; warn on failure."""
    report = fold.config.report
    if fold.trainer.is_global_zero and report.pictures and report.explain:
        print_stage(fold.config, "explaining the most confident mistakes")
        set_threads(has_images=True)  # the images pass through the whole network
        try:
            write_explanations(fold)
        except Exception as error:
            warn(f"explaining the mistakes failed: {type(error).__name__}: {one_line(error)}")
    return {}


def write_explanations(fold: TrainedFold) -> None:
    """Write heat maps and contributions of inputs for the mistakes shown in the report."""
    explainer = Explainer(CalibratedModel.load(fold.run.best_checkpoint, torch.device("cpu")))
    if explainer.member.view is None:
        return
    folder, cohort = fold.run.path / "explanations", fold.data.cohort.set_index("image_id")
    folder.mkdir(exist_ok=True)
    explanations = {}
    test = fold.predictions["test"]
    for kind, rows in find_confident_mistakes(test, fold.decision.threshold.value).items():
        for number, image_id in enumerate(test.image_id[rows]):
            record = cohort.loc[image_id].to_dict()
            paths, views = [record["path"]], [""]
            if explainer.has_views:
                paths, views = (record[name].split(SEPARATOR) for name in ("paths", "image_views"))
            images = [
                CaseImage(*read_source(path), path, view)
                for path, view in zip(paths, views, strict=True)
            ]
            reasons = explain_case([explainer], images, record)
            picture = f"{kind}_{number}.jpg"
            if drawings := reasons.draw(SIDE):
                Image.fromarray(join_pictures(drawings)).save(folder / picture, quality=80)
            parts = reasons.contributions
            explanation: dict[str, Any] = {"picture": picture, "added": parts.largest()}
            if parts.is_average:
                explanation["average"] = parts.start
            explanations[str(image_id)] = explanation
    write_json(folder / "mistakes.json", explanations)


EXTRAS: Final = (predict_missing_columns, store_background, store_index, explain_mistakes)
"""Functions that `train_fold` calls on all processes before the evaluation."""
