"""`skinmm export`: a checkpoint as one ONNX file, compared with PyTorch before it is left there.

Inputs, each only where the model uses it: `image` uint8 (batch, 3, size, size) RGB, `record`
float32 (batch, columns) as the metadata's `encoder` says, and `shown` bool (batch,), false where a
row has no image, of a model that learned to do without.

Outputs: `probabilities` float64 (batch, classes), with the correction for the sampling and any
calibration inside the graph (isotonic steps as well); `log_probabilities` and `features` float32,
from which `predict.py` computes what it computes for PyTorch; and, where the checkpoint knows it,
`ood` float64 (batch,), how unlike the validation rows each row is, 1 is the limit.

Metadata, each as JSON: `classes`, `positive`, `threshold`, `conformal`, `encoder`, `image_size`,
`preprocess` (steps on the picture that are not in the graph), and the SHA-256 of the `checkpoint`.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Float64
from scipy.special import softmax
from torch import Tensor, nn

from skinmm import __version__
from skinmm.config import ExportConfig
from skinmm.errors import InputError
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.referral import OODDetector
from skinmm.files import atomic_write
from skinmm.predict import Predictor
from skinmm.predict.backends import (
    KEY,
    Image,
    OnnxBackend,
    Outcome,
    Record,
    Shown,
    TorchBackend,
)
from skinmm.predict.model import CalibratedModel

DEMO: Final = Path(__file__).parents[1] / "demo"
OPSET: Final = 17
"""ONNX 1.12 of 2022: what every ONNX Runtime since then reads."""
TOLERANCE: Final = 1e-4
"""Largest difference of a probability from PyTorch's."""
OUTPUTS: Final = ("probabilities", "log_probabilities", "features")
_TINY: Final = float(np.finfo(np.float64).eps)
Probabilities = Float64[np.ndarray, "b classes"]


def export(config: ExportConfig) -> Path:
    """Writes an exported model that gives what its checkpoint gives.

    Returns:
        The file.

    Raises:
        InputError: no such checkpoint, a file in the way, a package is not installed, or the
            exported model gives something else; then no file is left.
    """
    source = Path(config.checkpoint)
    path = Path(config.out) if config.out else source.with_suffix(".onnx")
    if path.exists() and not config.overwrite:
        raise InputError(f"{path} exists; choose another with out=FILE, or overwrite=true")
    if not path.parent.is_dir():
        raise InputError(f"out={path}: the folder {path.parent} does not exist")
    member = CalibratedModel.load(source, torch.device("cpu"))
    with atomic_write(path) as partial:
        _write(member, partial)
        _verify(member, OnnxBackend(partial), config.rows)
    return path


class _Exported(nn.Module):
    """A network and its calibration, with inputs by position."""

    def __init__(self, member: CalibratedModel, backend: TorchBackend, inputs: list[str]) -> None:
        super().__init__()
        self.network, self._views, self._inputs = backend.network, backend.views, inputs
        self.calibrated, self._usual = Calibrated(member.calibration), member.familiarity

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._inputs, inputs, strict=True))
        logarithms, features = self.network.predict(
            given.get("image"), given.get("record"), self._views, given.get("shown")
        )
        outputs = self.calibrated(logarithms.double().softmax(dim=1)), logarithms, features
        return (*outputs, unfamiliarity(self._usual, features)) if self._usual else outputs


def unfamiliarity(usual: OODDetector, features: Float32[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """`OODDetector.score` in PyTorch's operations."""
    arrays = (usual.mean, usual.directions, usual.variances)
    mean, directions, variances = (torch.from_numpy(each).double() for each in arrays)
    centred = features.double() - mean
    along = centred @ directions.T
    left = (centred - along @ directions).square().sum(dim=1) / usual.rest
    return ((along.square() / variances).sum(dim=1) + left) / usual.limit


class Calibrated(nn.Module):
    """`Calibration.apply` in PyTorch's operations, so that it can be part of a graph."""

    def __init__(self, calibration: Calibration) -> None:
        """Takes a fitted calibration."""
        super().__init__()
        self._factors, self._method = None, calibration.method
        if calibration.prior is not None:
            trained, deployed = (np.array(part) for part in calibration.prior)
            known = np.divide(deployed, trained, out=np.zeros(len(trained)), where=trained > 0)
            self._factors = torch.from_numpy(known)
        state = calibration.state
        if self._method in ("temperature", "platt"):
            self._scale = float(state["scale"])
            self._shifts = torch.tensor(state["shifts"], dtype=torch.float64)
        elif self._method == "isotonic":
            kinds = ("x", "y")
            self._steps = [
                [torch.tensor(step[kind], dtype=torch.float64) for kind in kinds]
                for step in state["steps"]
            ]
        elif self._method != "none":
            raise InputError(f"calibration {self._method} cannot be exported")

    def forward(self, raw: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
        """Calibrated probabilities of raw ones."""
        chances = raw
        if self._factors is not None:
            shifted = raw * self._factors
            total = shifted.sum(dim=1, keepdim=True)
            chances = torch.where(total > 0, shifted / total.clamp_min(_TINY**2), raw)
        if self._method in ("temperature", "platt"):
            scaled = chances.clamp_min(_TINY).log() * self._scale + self._shifts
            return scaled.softmax(dim=1)
        if self._method == "isotonic":
            columns = [_stepped(chances[:, i], *step) for i, step in enumerate(self._steps)]
            stepped = torch.stack(columns, dim=1)
            return stepped / stepped.sum(dim=1, keepdim=True)
        return chances


def _stepped(
    values: Float64[Tensor, " n"], x: Float64[Tensor, " k"], y: Float64[Tensor, " k"]
) -> Float64[Tensor, " n"]:
    """`numpy.interp`: linear between the points, constant beyond them."""
    if len(x) == 1:
        return torch.zeros_like(values) + y
    inside = torch.minimum(torch.maximum(values, x[0]), x[-1])
    after = (inside[:, None] >= x[1:-1]).sum(dim=1)  # points passed: the segment's number
    slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    return y[after] + (inside - x[after]) * slopes[after]


def _write(member: CalibratedModel, path: Path) -> None:
    try:
        import onnx
    except ImportError as error:
        raise InputError("exporting needs onnx: pip install 'skinmm[onnx]'") from error
    backend, wish = _torch(member), member.view
    example = {
        "image": None if wish is None else torch.zeros(2, 3, wish.size, wish.size).byte(),
        "record": torch.zeros(2, member.encoder.dim) if "record" in member.inputs else None,
        "shown": torch.ones(2, dtype=torch.bool) if backend.stands_in else None,
    }
    given = {name: value for name, value in example.items() if value is not None}
    module = _Exported(member, backend, list(given)).eval()
    outputs = [*OUTPUTS, *(["ood"] if member.familiarity else [])]
    with _traceable():
        torch.onnx.export(
            module,
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*given, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    for name, value in _metadata(member).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    onnx.save(model, path)


def _metadata(member: CalibratedModel) -> dict[str, Any]:
    card = member.card
    return {
        "made_by": f"skinmm {__version__}",
        KEY: member.digest,
        "classes": card.classes,
        "positive": card.positive,
        "threshold": member.threshold.value,
        "conformal": card.conformal,
        "encoder": card.encoder["columns"] if "record" in member.inputs else [],
        "image_size": member.view.size if member.view else None,
        "preprocess": card.preprocess,
    }


@contextmanager
def _traceable() -> Iterator[None]:
    """For the tracing exporter, which needs no further package; it warns of what is fixed here."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no operator for it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _verify(member: CalibratedModel, exported: OnnxBackend, rows: int) -> None:
    """Refuses an exported model that differs from its checkpoint on lesions of the embedded cohort.

    Raises:
        InputError: a probability differs by more than `TOLERANCE`, or a decision does.
    """
    table = pd.read_csv(DEMO / "cohort.csv", dtype={"image_id": str}).head(rows)
    compared = _Compared(member, exported)
    twin = replace(member, backend=compared)
    predicted = Predictor([twin]).predict(table, DEMO / "images", batch_size=7)
    failed = predicted["error"][predicted["error"] != ""]
    if len(failed):
        raise InputError(f"comparing with PyTorch failed: {failed.iloc[0]}")
    ours, theirs = np.concatenate(compared.ours), np.concatenate(compared.theirs)
    worst = float(np.abs(ours - theirs).max())
    positive = np.isin(member.card.classes, member.card.positive)
    called = [each[:, positive].sum(axis=1) >= member.threshold.value for each in (ours, theirs)]
    other = int((called[0] != called[1]).sum())
    if not worst <= TOLERANCE or other:
        raise InputError(
            f"the exported model differs from its checkpoint: probabilities by up to {worst:.2g}, "
            f"{other} of {len(table)} decisions; nothing was written"
        )


class _Compared(TorchBackend):
    """PyTorch, with the exported model asked the same."""

    def __init__(self, member: CalibratedModel, exported: OnnxBackend) -> None:
        torch_backend = _torch(member)
        super().__init__(torch_backend.network, torch_backend.views)
        self._calibration, self._exported = member.calibration, exported
        self.ours: list[Probabilities] = []
        self.theirs: list[Probabilities] = []

    def __call__(self, image: Image, record: Record, shown: Shown) -> Outcome:
        outcome = super().__call__(image, record, shown)
        raw = softmax(outcome.log_probabilities.astype(np.float64), axis=1)
        answers = self._exported.run(list(OUTPUTS), image, record, shown)
        again = softmax(answers[1].astype(np.float64), axis=1)
        # The file's own probabilities, and those that `predict.py` makes of its other output.
        self.ours += 2 * [self._calibration.apply(raw)]
        self.theirs += [answers[0], self._calibration.apply(again)]
        return outcome


def _torch(member: CalibratedModel) -> TorchBackend:
    if not isinstance(member.backend, TorchBackend):
        raise TypeError(f"{member.backend.name} cannot be exported")
    return member.backend
