"""`skinmm export`: write a checkpoint as one ONNX file, and compare it with PyTorch.

Inputs, each only if the model uses it: `image` uint8 (batch, 3, size, size) RGB, `record` float32
(batch, columns) as the metadata's `encoder` describes, and `shown` bool (batch,), false for rows
without an image, of a model that was trained with such rows. Of a model trained with
`data.unit=lesion`: `image` (batch, views, 3, size, size) and `shown` int64 (batch, views), the code
of each view in `skinmm.vocabulary.VIEW_TYPES`, 0 where there is none; the number of views is free.

Outputs: `probabilities` float64 (batch, classes), with the prior correction and the calibration
inside the graph; `log_probabilities` and `features` float32, from which `predict.py` computes the
same as with PyTorch; and, if the checkpoint has it, `ood` float64 (batch,), the out-of-distribution
score, 1 is the limit.

Metadata, each as JSON: `classes`, `positive`, `threshold` (null: never calibrated), `band` (null:
the prediction sets decide), `conformal`, `encoder`, `image_size`, `preprocess` (steps that are not
in the graph), the SHA-256 of the `checkpoint`, and `precision`: the arithmetic of the image network
and, if it is not fp32, what it cost on validation (`skinmm.predict.quantise`). `symmetries` is the
number of flips and rotations of each image, which the graph encodes as one batch.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.special import softmax
from torch import Tensor, nn

from skinmm import __version__
from skinmm.config.checkpoints import ZOO, find_checkpoint
from skinmm.config.commands import ExportConfig
from skinmm.errors import InputError, print_line, require_package
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.correction import invert_loss
from skinmm.files import atomic_write
from skinmm.predict import backends
from skinmm.predict.backends import (
    PRECISION,
    HasImage,
    Image,
    NetworkOutput,
    OnnxBackend,
    Record,
    TorchBackend,
)
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.pipeline import require_single_rows
from skinmm.predict.predictor import Predictor
from skinmm.predict.writer import require_output_file
from skinmm.vocabulary import VIEW_TYPES

DEMO: Final = Path(__file__).parents[1] / "demo"
OPSET: Final = 17
"""ONNX 1.12 of 2022, which every ONNX Runtime since then reads."""
TOLERANCE: Final = 1e-4
"""Maximum difference of a probability from that of PyTorch."""
OUTPUTS: Final = ("probabilities", *backends.OUTPUTS)
_TINY: Final = float(np.finfo(np.float64).eps)


def export(config: ExportConfig) -> list[Path]:
    """Export models, check them against their checkpoints, and return their paths.

    The networks of `ensemble.ckpt` become `ensemble.0.onnx`, `ensemble.1.onnx` and so on.
    """
    if config.output or config.runtime or config.texts:
        raise InputError(
            "output, runtime and texts belong to target=browser; target=onnx writes out=FILE"
        )
    source = find_checkpoint(Path(config.checkpoint))
    if not config.out and source.parent == ZOO:
        raise InputError(
            f"checkpoint={config.checkpoint} comes with skinmm: name the file, out=FILE"
        )
    path = Path(config.out) if config.out else source.with_suffix(".onnx")
    models = load_models(source, torch.device("cpu"), uncalibrated=config.uncalibrated)
    require_single_rows(models, "skinmm export", allow_views=True)
    paths = [path]
    if len(models) > 1:
        paths = [path.with_suffix(f".{number}.onnx") for number in range(len(models))]
    for target in paths:
        require_output_file("out", target, overwrite=config.overwrite)
    with ExitStack() as stack:  # all files appear, or none
        partials = [stack.enter_context(atomic_write(target)) for target in paths]
        for model, partial in zip(models, partials, strict=True):
            write_model(model, partial, config)
    return paths


def write_model(model: CalibratedModel, path: Path, config: ExportConfig) -> dict[str, Any]:
    """Write a model as ONNX if it agrees with PyTorch on embedded lesions.

    Returns the precision of the image network and what it cost.
    """
    facts: dict[str, Any] = {"name": config.precision}
    _write(model, path)
    _verify(model, OnnxBackend(path), config.rows)
    if config.precision != "fp32":
        from skinmm.predict.quantise import describe, reduce_precision

        facts = reduce_precision(model, path, config.precision, config.root)
        print_line(describe(facts))
    _add_metadata(path, {PRECISION: facts})
    return facts


class _ExportedModule(nn.Module):
    """Network with its calibration; inputs by position."""

    def __init__(self, model: CalibratedModel, backend: TorchBackend, inputs: list[str]) -> None:
        super().__init__()
        self.network, self._symmetries, self._inputs = backend.network, backend.symmetries, inputs
        self.calibration = CalibrationModule(model.calibration)
        self._ood_detector = model.ood_detector

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self._inputs, inputs, strict=True))
        cells = (values.get("image"), values.get("record"), self._symmetries, values.get("shown"))
        log_probabilities, features = self.network.predict(*cells, at_once=True)
        probabilities = self.calibration(log_probabilities.double().softmax(dim=1))
        outputs = (probabilities, log_probabilities, features)
        if self._ood_detector is None:
            return outputs
        detector = self._ood_detector  # `OODDetector.score` with PyTorch operations
        arrays = (detector.mean, detector.directions, detector.variances)
        mean, directions, variances = (torch.from_numpy(array).double() for array in arrays)
        centred = features.double() - mean
        along = centred @ directions.T
        residual = (centred - along @ directions).square().sum(dim=1) / detector.rest
        return (*outputs, ((along.square() / variances).sum(dim=1) + residual) / detector.limit)


class CalibrationModule(nn.Module):
    """`Calibration.apply` with PyTorch operations, which can be exported."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self._factors, self._method = None, calibration.method
        self._inverse = calibration.inverse
        if calibration.prior is not None:
            trained, deployed = (np.array(shares) for shares in calibration.prior)
            factors = np.divide(deployed, trained, out=np.zeros(len(trained)), where=trained > 0)
            self._factors = torch.from_numpy(factors)
        state = calibration.state
        self._maps = [calibration.site] if calibration.site else []
        if self._method in ("temperature", "platt"):
            self._maps.insert(0, state)
        elif self._method == "isotonic":
            self._steps = [
                [torch.tensor(step[axis], dtype=torch.float64) for axis in ("x", "y")]
                for step in state["steps"]
            ]
        elif self._method != "none":
            raise InputError(f"calibration {self._method} cannot be exported")

    def forward(self, raw: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
        """Calibrate raw probabilities."""
        values = invert_loss(raw, self._inverse, torch)
        if self._factors is not None:
            shifted = values * self._factors
            total = shifted.sum(dim=1, keepdim=True)
            values = torch.where(total > 0, shifted / total.clamp_min(1e-300), values)
        if self._method == "isotonic":
            columns = [_interpolate(values[:, i], *step) for i, step in enumerate(self._steps)]
            values = torch.stack(columns, dim=1)
            values = values / values.sum(dim=1, keepdim=True)
        for state in self._maps:
            shifts = torch.tensor(state["shifts"], dtype=torch.float64)
            values = (values.clamp_min(_TINY).log() * state["scale"] + shifts).softmax(dim=1)
        return values


def _interpolate(
    values: Float64[Tensor, " n"], x: Float64[Tensor, " k"], y: Float64[Tensor, " k"]
) -> Float64[Tensor, " n"]:
    """Compute `numpy.interp`: linear between the points, constant beyond them."""
    if len(x) == 1:
        return torch.zeros_like(values) + y
    inside = torch.minimum(torch.maximum(values, x[0]), x[-1])
    segment = (inside[:, None] >= x[1:-1]).sum(dim=1)
    slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    return y[segment] + (inside - x[segment]) * slopes[segment]


def _write(model: CalibratedModel, path: Path) -> None:
    require_package("onnx", "exporting", "onnx")
    backend, view = cast("TorchBackend", model.backend), model.view
    has_views = backend.network.views is not None
    has_image = torch.ones(2, dtype=torch.bool) if backend.accepts_missing_image else None
    rows = (2, 2) if has_views else (2,)
    examples = {
        "image": None if view is None else torch.zeros(*rows, 3, view.size, view.size).byte(),
        "record": torch.zeros(2, model.encoder.dim) if "record" in model.inputs else None,
        "shown": torch.ones(rows, dtype=torch.int64) if has_views else has_image,
    }
    axes = {name: {0: "batch"} for name in ("record", *OUTPUTS, "ood")}
    free = {0: "batch", 1: "views"} if has_views else {0: "batch"}
    inputs = {name: value for name, value in examples.items() if value is not None}
    outputs = [*OUTPUTS, *(["ood"] if model.ood_detector else [])]
    with _traceable():
        torch.onnx.export(
            _ExportedModule(model, backend, list(inputs)).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: axes.get(name, free) for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    metadata = {
        "made_by": f"skinmm {__version__}",
        backends.KEY: model.digest,
        "classes": model.card.classes,
        "positive": model.card.positive,
        "threshold": model.threshold and model.threshold.value,
        "band": model.card.band,
        "conformal": model.card.conformal,
        "encoder": model.card.encoder["columns"] if "record" in model.inputs else [],
        "image_size": view.size if view else None,
        "preprocess": model.card.preprocess,
        "accepts_missing_image": backend.accepts_missing_image,
        "symmetries": backend.symmetries,
    }
    _add_metadata(path, metadata)


def _add_metadata(path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    graph = onnx.load(path)
    for name, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    onnx.save(graph, path)


@contextmanager
def _traceable() -> Iterator[None]:
    """Prepare for the tracing exporter; silence its warnings about constant values."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no operator for it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _verify(model: CalibratedModel, exported: OnnxBackend, rows: int) -> None:
    """Compare probabilities and decisions for lesions of the included cohort."""
    table = pd.read_csv(DEMO / "cohort.csv", dtype={"image_id": str}).head(rows)
    if model.config.data.unit == "lesion":
        table = _group_examples(table)
    comparison = _ComparedBackend(model, exported)
    predictor = Predictor([replace(model, backend=comparison)])
    predictions = predictor.predict(table, DEMO / "images", batch_size=7)
    errors = predictions["error"][predictions["error"] != ""]
    if len(errors):
        raise InputError(f"comparing with PyTorch failed: {errors.iloc[0]}")
    pairs = [np.concatenate(parts) for parts in (comparison.expected, comparison.actual)]
    difference = float(np.abs(pairs[0] - pairs[1]).max())
    threshold = model.threshold.value if model.threshold else np.inf  # decides nothing
    decisions = [p[:, model.positive].sum(axis=1) >= threshold for p in pairs]
    changed = int((decisions[0] != decisions[1]).sum())
    if not difference <= TOLERANCE or changed:
        raise InputError(
            "the exported model differs from its checkpoint: probabilities by up to "
            f"{difference:.2g}, {changed} of {len(predictions)} decisions; nothing was written"
        )


def _group_examples(table: pd.DataFrame) -> pd.DataFrame:
    """Group rows to lesions of one, two and three images in turn, with all types of views."""
    numbers = np.arange(len(table))
    lesions = numbers // 6 * 3 + np.array([0, 1, 1, 2, 2, 2])[numbers % 6]
    views = np.resize(np.array([*VIEW_TYPES[2:], ""], object), len(table))
    first = table.groupby(lesions).transform("first")
    return first.assign(image_id=table["image_id"], lesion_id=lesions, view=views)


class _ComparedBackend(TorchBackend):
    """PyTorch backend that runs the exported model on every batch too."""

    def __init__(self, model: CalibratedModel, exported: OnnxBackend) -> None:
        backend = cast("TorchBackend", model.backend)
        super().__init__(backend.network, backend.symmetries)
        self._calibration, self._exported = model.calibration, exported
        self.expected: list[np.ndarray] = []
        self.actual: list[np.ndarray] = []

    def __call__(self, image: Image, record: Record, has_image: HasImage) -> NetworkOutput:
        output = super().__call__(image, record, has_image)
        probabilities, log_probabilities, _ = self._exported.run(OUTPUTS, image, record, has_image)
        # Compare the probabilities of the file, and those that `predict.py` computes.
        self.expected += 2 * [self._calibrate(output[0])]
        self.actual += [probabilities, self._calibrate(log_probabilities)]
        return output

    def _calibrate(self, log_probabilities: np.ndarray) -> np.ndarray:
        return self._calibration.apply(softmax(log_probabilities.astype(np.float64), axis=1))
