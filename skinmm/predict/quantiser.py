"""Copies of ONNX graphs in reduced precision: image network in int8, or weights in 16 bits."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32

from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.predict.backends import OOD_SCALE, HasImage, Image, OnnxBackend, Record, make_feed
from skinmm.predict.ensemble import CalibratedModel

CALIBRATION_IMAGES: Final = 200
WEIGHT_BITS = 7
"""Without VNNI, sums of products with 8-bit weights overflow."""
PROBED_IMAGES: Final = 16
"""Images on which the layers are ranked."""
_LAYERS: Final = ("Conv", "Gemm", "MatMul")
_AROUND: Final = (
    *("Add", "Mul", "Clip", "Relu", "Sigmoid", "HardSigmoid", "LeakyRelu", "Pad"),
    *("Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
)
_Batch = tuple[Image, Record, HasImage]


def load_batches(data: LesionData, part: str, rows: int | None = None) -> Iterator[_Batch]:
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


def write_half(path: Path, smaller: Path) -> None:
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


def scale_ood(path: Path, scale: float) -> None:
    """Multiply the out-of-distribution score of a file."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if "ood" in node.output)
    node.output[:] = ["ood_unscaled"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([scale]), OOD_SCALE))
    model.graph.node.append(onnx.helper.make_node("Mul", ["ood_unscaled", OOD_SCALE], ["ood"]))
    onnx.save(model, path)


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
            feeds = self._feeds(load_batches(self._data, "train", CALIBRATION_IMAGES))
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
            reduce_range=WEIGHT_BITS < 8,  # noqa: PLR2004
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
        batches = list(load_batches(self._data, "train", PROBED_IMAGES))
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
