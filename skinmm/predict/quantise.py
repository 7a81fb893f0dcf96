"""`skinmm export precision=int8|fp16`: reduced precision of the image network of an ONNX file.

int8 is static quantisation (Jacob et al. 2018, arXiv:1712.05877): weights per channel, and
activations with the ranges of images from the training part. The layers that change the output most
stay in 32 bits, as few as validation requires. fp16 stores weights in 16 bits: a smaller file, no
faster, because processors calculate in 32 bits. Record, fusion, head, calibration and the
out-of-distribution score always stay in 32 and 64 bits.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped

from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError, print_error
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.predict.backends import HasImage, Image, OnnxBackend, Record, make_feed
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.predictor import Predictor

MAX_AUROC_LOSS: Final = 0.002
MAX_ERROR_GAIN: Final = 0.005
"""Of the expected calibration error."""
MIN_EQUAL: Final = 0.99
"""Share of decisions that stay."""
CALIBRATION_IMAGES: Final = 200
PROBED_IMAGES: Final = 16
"""Images on which the layers are ranked."""
_LAYERS: Final = ("Conv", "Gemm", "MatMul")
_AROUND: Final = (
    *("Add", "Mul", "Clip", "Relu", "Sigmoid", "HardSigmoid", "LeakyRelu", "Pad"),
    *("Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
)
_Batch = tuple[Image, Record, HasImage]


class Quality(NamedTuple):
    """AUROC, expected calibration error and decisions of an exported file on validation."""

    auroc: float
    ece: float
    decisions: Shaped[np.ndarray, " n"]


def reduce_precision(
    model: CalibratedModel, path: Path, precision: str, root: str | None
) -> dict[str, Any]:
    """Replace an exported file by one of reduced precision; return the cost measured on validation.

    A file that costs more than the limits of this module is refused.
    """
    data = _load_data(model, precision, root)
    before = measure(model, OnnxBackend(path), data)
    with TemporaryDirectory() as folder:
        smaller = Path(folder, "smaller.onnx")
        for layers in _write_candidates(model, path, smaller, precision, data):
            after = measure(model, OnnxBackend(smaller), data)
            facts = _compare(before, after) | {"name": precision, "layers_in_32_bits": layers}
            text = describe(facts)
            if is_accepted(facts):
                path.write_bytes(smaller.read_bytes())
                return facts
            print_error(f"not accepted: {text}")
    raise InputError(
        f"precision={precision} costs too much: {text}; at most {MAX_AUROC_LOSS} AUROC and "
        f"{MAX_ERROR_GAIN} calibration error may be lost, {MIN_EQUAL:.0%} of decisions must be "
        "equal; nothing was written; use precision=fp32"
    )


def is_accepted(facts: dict[str, Any]) -> bool:
    """Return whether the cost is within the limits."""
    losses = [facts[name][1] - facts[name][0] for name in ("auroc", "calibration_error")]
    is_equal = facts["equal_decisions"] >= MIN_EQUAL
    return -losses[0] < MAX_AUROC_LOSS and losses[1] < MAX_ERROR_GAIN and is_equal


def describe(facts: dict[str, Any]) -> str:
    """Return the cost in one line."""
    auroc, ece = (
        "{:.4f} -> {:.4f}".format(*facts[name]) for name in ("auroc", "calibration_error")
    )
    layers = len(facts["layers_in_32_bits"])
    return (
        f"{facts['name']}, {layers} layers in 32 bits: AUROC {auroc}, calibration error {ece}, "
        f"{facts['equal_decisions']:.1%} of {facts['validation_rows']} decisions equal"
    )


def _compare(before: Quality, after: Quality) -> dict[str, Any]:
    return {
        "auroc": [before.auroc, after.auroc],
        "calibration_error": [before.ece, after.ece],
        "equal_decisions": float((before.decisions == after.decisions).mean()),
        "validation_rows": len(before.decisions),
    }


def _load_data(model: CalibratedModel, precision: str, root: str | None) -> LesionData:
    """Return the cohort of a checkpoint, with training and validation rows."""
    setting = f"precision={precision}"
    if "image" not in model.inputs:
        raise InputError(f"{setting}: the checkpoint has no image network; use precision=fp32")
    if model.threshold is None:
        raise InputError(f"{setting} compares decisions, so it needs a calibrated checkpoint")
    config = model.config
    if config.data.fold == "all":
        raise InputError(f"{setting}: an ensemble has no validation part; use one fold")
    if root is not None:
        config = replace(config, data=replace(config.data, root=root))
    data = LesionData(config, model.inputs)
    try:
        data.setup()
    except (InputError, OSError) as error:
        raise InputError(
            f"{setting}: cannot read the cohort of the checkpoint: {error}; set root=DIR"
        ) from error
    if list(data.classes) != list(model.card.classes):
        raise InputError(f"{setting}: cohort and checkpoint have different classes; set root=DIR")
    return data


def _load(data: LesionData, part: str, rows: int | None = None) -> Iterator[_Batch]:
    """Load the batches of a part, or of a random sample of its rows."""
    chosen = None
    if rows is not None:
        count = len(data.rows(part))
        chosen = np.random.default_rng(0).permutation(count)[:rows]
    for batch in data.evaluation_loader(part, chosen):
        image = batch["image"].numpy()
        record = batch["record"].numpy() if "record" in batch else None
        has_image = batch.get("has_image", torch.ones(len(image), dtype=torch.bool)).numpy()
        yield np.moveaxis(image, -3, -1), record, has_image


def measure(
    model: CalibratedModel, backend: OnnxBackend, data: LesionData, part: str = "val"
) -> Quality:
    """Evaluate a file on a part of a cohort."""
    outputs = [backend(*batch) for batch in _load(data, part)]
    log_probabilities, features = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    detector = model.ood_detector
    ood = detector.score(features) if detector else np.zeros(len(features))
    scores = np.hstack([log_probabilities.astype(np.float64), ood[:, None]])
    predictor = Predictor([model])
    output = model.calibrate(scores)
    probabilities = output.calibrated
    malignancy = probabilities[:, model.positive].sum(axis=1)
    rows = data.rows(part)
    cohort = data.cohort.iloc[rows]
    predictions = Predictions(
        cohort["image_id"].to_numpy(object),
        cohort["patient_id"].to_numpy(object),
        data.targets[rows],
        probabilities,
        None,
        tuple(model.card.classes),
        tuple(model.card.positive),
    )
    metrics = evaluate(predictions, resamples=0)["metrics"]
    called = malignancy >= (predictor.threshold or 0)
    decisions = predictor.decide(called, output)
    return Quality(metrics["auroc"]["value"], metrics["ece"]["value"], decisions)


def _write_candidates(
    model: CalibratedModel, path: Path, smaller: Path, precision: str, data: LesionData
) -> Iterator[list[str]]:
    """Write files with an increasing number of 32-bit layers; yield the names of these layers."""
    if precision == "fp16":
        _write_half(path, smaller)
        yield []
        return
    quantiser = Quantiser(path, smaller, model, data)
    quantiser.write()
    yield []
    ranking = quantiser.rank_layers()
    count = 1
    while count <= len(ranking) // 2:
        quantiser.write(exclude=ranking[:count])
        yield ranking[:count]
        count *= 2


def _write_half(path: Path, smaller: Path) -> None:
    """Write a file with weights in 16 bits and arithmetic in 32 bits."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    nodes = find_image_nodes(onnx.shape_inference.infer_shapes(model).graph)
    names = {name for node in nodes if node.op_type in _LAYERS for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in names and tensor.data_type == onnx.TensorProto.FLOAT:
            half = f"{tensor.name}_16_bits"
            to = onnx.TensorProto.FLOAT
            cast = onnx.helper.make_node("Cast", [half], [tensor.name], f"{half}_cast", to=to)
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, half))
            model.graph.node.insert(0, cast)
    onnx.save(model, smaller)


class Quantiser:
    """Quantiser of an exported image network; the ranges of its activations are measured once."""

    def __init__(self, path: Path, smaller: Path, model: CalibratedModel, data: LesionData) -> None:
        import onnx

        self._path, self._smaller, self._data = path, smaller, data
        self._model = onnx.shape_inference.infer_shapes(onnx.load(path))
        self._nodes = find_image_nodes(self._model.graph)
        self.layers = [node.name for node in self._nodes if node.op_type in _LAYERS]
        if not self.layers:
            raise InputError(f"precision=int8: {model.config.model.name} has no layer to quantise")
        self._ranges = self._read_ranges()

    def _read_ranges(self) -> Any:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        operators = sorted({node.op_type for node in self._nodes})
        with TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                self._path,
                operators,
                str(Path(folder, "observed.onnx")),
                CalibrationMethod.MinMax,
                extra_options={"symmetric": False},
            )
            feeds = self._feeds(_load(self._data, "train", CALIBRATION_IMAGES))
            for feed in feeds:
                reader = SimpleNamespace(get_next=partial(next, iter([feed]), None))
                calibrator.collect_data(reader)
            return calibrator.compute_data()

    def _feeds(self, batches: Iterator[_Batch]) -> Iterator[dict[str, Any]]:
        """Yield the inputs of single rows: a step of the calibrator keeps all activations."""
        names = {node.name for node in self._model.graph.input}
        for batch in batches:
            inputs = make_feed(names, *batch)
            for row in range(len(batch[-1])):
                yield {name: value[row : row + 1] for name, value in inputs.items()}

    def write(self, only: str | None = None, exclude: list[str] | None = None) -> None:
        """Write the file with one layer quantised, or with all layers except the excluded ones."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        nodes = [only] if only else [node.name for node in self._nodes]
        quantiser = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=True,  # 7-bit weights: without VNNI, sums of products in 8 bits overflow
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=exclude or [],
            op_types_to_quantize=sorted({node.op_type for node in self._nodes}),
            extra_options={},
        )
        quantiser.quantize_model()
        model = quantiser.model.model
        del model.metadata_props[:]  # the quantiser adds entries
        model.metadata_props.extend(self._model.metadata_props)
        onnx.save(model, self._smaller)

    def rank_layers(self) -> list[str]:
        """Return the layers by descending change of the output if quantised alone."""
        batches = list(_load(self._data, "train", PROBED_IMAGES))
        expected = self._run(OnnxBackend(self._path), batches)
        changes = {}
        for name in self.layers:
            self.write(only=name)
            actual = self._run(OnnxBackend(self._smaller), batches)
            changes[name] = float(np.square(actual - expected).mean())
        return sorted(changes, key=lambda name: -changes[name])

    @staticmethod
    def _run(backend: OnnxBackend, batches: list[_Batch]) -> Float32[np.ndarray, "n classes"]:
        return np.concatenate([backend(*batch)[0] for batch in batches])


def find_image_nodes(graph: Any) -> list[Any]:
    """Return the nodes of the image network that compute with pixels in 32 bits."""
    from onnx import TensorProto

    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    pixels, nodes = {"image"}, list[Any]()
    for node in graph.node:
        if node.op_type == "Shape" or not pixels.intersection(node.input):
            continue
        is_float = kinds.get(node.output[0]) == TensorProto.FLOAT
        is_in_network = node.name.startswith("/image") and (nodes or node.op_type in _LAYERS)
        if is_in_network and is_float and node.op_type in (*_LAYERS, *_AROUND):
            nodes.append(node)
        pixels.update(node.output)
    return nodes
