"""Backends that run a network: PyTorch, or ONNX Runtime for an exported model."""

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from skinmm.config import Config
from skinmm.errors import InputError, require_package
from skinmm.images.decode import reuse_freed_memory
from skinmm.models.network import Network, build_network

KEY: Final = "checkpoint"
"""Metadata entry of an exported model: SHA-256 of its checkpoint."""
PRECISION: Final = "precision"
"""Metadata entry of an exported model: arithmetic of its image network, and what it cost."""
OOD_SCALE: Final = "ood_scale"
"""Entry of the precision: factor of the out-of-distribution score that reduced precision needs."""
OUTPUTS: Final = ("log_probabilities", "features")

Image = UInt8[np.ndarray, "b *views size size 3"] | None
Record = Float32[np.ndarray, "b columns"] | None
HasImage = Shaped[np.ndarray, "b *views"]
"""Rows with an image; of lesions with several views, the type of each, 0 where there is none."""
NetworkOutput = tuple[Float32[np.ndarray, "b classes"], Float32[np.ndarray, "b dim"]]
"""Log-probabilities and fused features."""


class TorchBackend:
    """Network on its device.

    Args:
        network: in evaluation mode.
        symmetries: number of flips and transposes to average.

    Attributes:
        accepts_missing_image: whether the network was trained with rows without an image.
        concurrency: batches to run at the same time; one batch already uses all threads.
    """

    name: Final = "torch"
    concurrency: Final = 1
    ood_scale: Final = 1.0

    def __init__(self, network: Network, symmetries: int) -> None:
        reuse_freed_memory()
        self.network, self.symmetries = network, symmetries
        self.accepts_missing_image = network.absent is not None

    @classmethod
    def build(
        cls, config: Config, widths: Sequence[int], classes: int, weights: dict[str, Tensor]
    ) -> "TorchBackend":
        """Build the network that a checkpoint describes, in evaluation mode on the CPU."""
        network = build_network(config, widths, classes, pretrained=False)
        network.load_state_dict(weights)
        network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        return cls(network, config.evaluation.views)

    def __call__(self, image: Image, record: Record, has_image: HasImage) -> NetworkOutput:
        """Run a batch."""
        is_complete = has_image.dtype == np.bool_ and has_image.all()
        pixels, columns, mask = (
            None if array is None else torch.from_numpy(array).to(self.network.device)
            for array in (image, record, None if is_complete else has_image)
        )
        if pixels is not None:
            pixels = pixels.movedim(-1, -3)
        with torch.inference_mode():
            log_probabilities, features = self.network.predict(
                pixels, columns, self.symmetries, mask
            )
        return log_probabilities.cpu().numpy(), features.cpu().numpy()


class OnnxBackend:
    """Exported model on the CPU, loaded from a file.

    Attributes:
        accepts_missing_image: whether the network was trained with rows without an image.
        concurrency: batches to run at the same time.
        metadata: metadata of the file, see `skinmm.predict.export_onnx`.
        ood_scale: factor of the out-of-distribution score of its features.
    """

    name: Final = "onnx"

    def __init__(self, path: Path, concurrency: int = 1) -> None:
        require_package("onnxruntime", f"{path}:", "onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        self.concurrency = min(concurrency, torch.get_num_threads())
        options.intra_op_num_threads = torch.get_num_threads() // self.concurrency
        options.log_severity_level = 3  # errors
        # Threads that wait by spinning cost as much as those that compute.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                # It would quantise the layers that a file keeps in 32 bits.
                disabled_optimizers=["WeightBiasQuantization"],
            )
        except Exception as error:  # ONNX Runtime has no base class for its errors
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: not an exported model, or damaged ({reason})") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {name: json.loads(text) for name, text in metadata.items()}
        self.ood_scale = float(read_precision(self).get(OOD_SCALE, 1.0))
        self._inputs = {node.name for node in self._session.get_inputs()}
        accepts = self.metadata.get("accepts_missing_image", "shown" in self._inputs)
        self.accepts_missing_image = bool(accepts)

    def __call__(self, image: Image, record: Record, has_image: HasImage) -> NetworkOutput:
        """Run a batch."""
        log_probabilities, features = self.run(OUTPUTS, image, record, has_image)
        return log_probabilities, features

    def run(
        self, outputs: tuple[str, ...], image: Image, record: Record, has_image: HasImage
    ) -> list[Any]:
        """Return the named outputs of the model for a batch.

        The model runs all flips and rotations of an image at once, so it receives as many rows
        fewer.
        """
        feed = make_feed(self._inputs, image, record, has_image)
        rows = max(-(-len(has_image) // self.metadata.get("symmetries", 1)), 1)
        parts = [
            self._session.run(
                list(outputs), {name: value[start : start + rows] for name, value in feed.items()}
            )
            for start in range(0, max(len(has_image), 1), rows)
        ]
        return [np.concatenate(results) for results in zip(*parts, strict=True)]


def make_feed(
    names: Container[str], image: Image, record: Record, has_image: HasImage
) -> dict[str, Any]:
    """Return the inputs of an exported model with these input names for a batch."""
    pixels = None if image is None else np.ascontiguousarray(np.moveaxis(image, -1, -3))
    values: dict[str, Any] = {"image": pixels, "record": record, "shown": has_image}
    return {name: value for name, value in values.items() if name in names}


Backend = TorchBackend | OnnxBackend


def load_exported(
    checkpoint: Path, path: Path, digest: str, backend: str, device: str, concurrency: int = 1
) -> OnnxBackend | None:
    """Load the exported model of a checkpoint if `backend` selects it.

    `backend` is torch, onnx, or auto: onnx if the model exists and has the SHA-256 `digest` of the
    checkpoint, ONNX Runtime is installed, and torch's `device` is cpu.
    """
    if backend == "torch" or (backend == "auto" and (device != "cpu" or not path.is_file())):
        return None
    if device != "cpu":
        raise InputError("backend=onnx runs on the CPU; use backend=torch or accelerator=cpu")
    if not path.is_file():
        command = f"skinmm export checkpoint={checkpoint}"
        raise InputError(f"backend=onnx: {path} does not exist; to create it: {command}")
    try:
        model = OnnxBackend(path, concurrency)
    except InputError:
        if backend == "auto":
            return None
        raise
    if model.metadata.get(KEY) == digest:
        return model
    if backend == "auto":
        return None
    raise InputError(f"{path} was exported from another checkpoint than {checkpoint}")


def read_precision(backend: Backend) -> dict[str, Any]:
    """Return the precision of the image network, and its cost measured on validation."""
    metadata = backend.metadata if isinstance(backend, OnnxBackend) else {}
    return dict(metadata.get(PRECISION, {"name": "fp32"}))
