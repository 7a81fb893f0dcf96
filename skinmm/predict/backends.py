"""What runs a network: PyTorch, or ONNX Runtime where the model was exported."""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from skinmm.errors import InputError
from skinmm.models.network import Network

KEY: Final = "checkpoint"
"""The entry of an exported model's metadata that holds the SHA-256 of its checkpoint."""

Image = UInt8[np.ndarray, "b size size 3"] | None
Record = Float32[np.ndarray, "b columns"] | None
Shown = Bool[np.ndarray, " b"]


class Outcome(NamedTuple):
    """Of a batch: log-probabilities and fused features, in 32 bit."""

    log_probabilities: Float32[np.ndarray, "b classes"]
    features: Float32[np.ndarray, "b dim"]


class TorchBackend:
    """A network on its device.

    Attributes:
        stands_in: whether it learned to do without an image.
        lanes: batches that are looked at side by side: one has all threads.
    """

    name: Final = "torch"
    lanes: Final = 1

    def __init__(self, network: Network, views: int) -> None:
        """Takes the network, and how many flips and transposes are averaged."""
        self.network, self.views = network, views
        self.stands_in = network.absent is not None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    def __call__(self, image: Image, record: Record, shown: Shown) -> Outcome:
        """Looks at a batch."""
        pixels = columns = None
        if record is not None:
            columns = torch.from_numpy(record).to(self.device)
        if image is not None:
            pixels = torch.from_numpy(image).to(self.device).permute(0, 3, 1, 2)
        seen = None if shown.all() else torch.from_numpy(shown).to(self.device)
        with torch.inference_mode():
            outcome, features = self.network.predict(pixels, columns, self.views, seen)
        return Outcome(outcome.cpu().numpy(), features.cpu().numpy())


class OnnxBackend:
    """An exported model on the CPU.

    Attributes:
        stands_in: whether it learned to do without an image.
        lanes: batches that are looked at side by side.
        metadata: what the file says of the model.
    """

    name: Final = "onnx"
    device: Final = torch.device("cpu")

    def __init__(self, path: Path, lanes: int = 1) -> None:
        """Loads an exported model.

        Args:
            path: the file.
            lanes: batches that are looked at side by side, which share the cores: fewer threads
                wait for each other than where all work on one batch.

        Raises:
            InputError: ONNX Runtime is not installed, or the file is not an exported model.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"{path}: needs onnxruntime: pip install 'skinmm[onnx]'") from error
        options = onnxruntime.SessionOptions()
        self.lanes = min(lanes, torch.get_num_threads())
        options.intra_op_num_threads = torch.get_num_threads() // self.lanes
        options.log_severity_level = 3  # errors
        # Threads that wait for their next share by spinning cost as much as those that compute.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has no error of its own to catch
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: not an exported model, or damaged ({reason})") from error
        described = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {name: json.loads(text) for name, text in described.items()}
        self._inputs = {each.name for each in self._session.get_inputs()}
        self.stands_in = "shown" in self._inputs

    def __call__(self, image: Image, record: Record, shown: Shown) -> Outcome:
        """Looks at a batch."""
        return Outcome(*self.run(list(Outcome._fields), image, record, shown))

    def run(self, outputs: list[str], image: Image, record: Record, shown: Shown) -> list[Any]:
        """Some outputs of the model for a batch."""
        pixels = None if image is None else np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        given = {"image": pixels, "record": record, "shown": shown}
        feed = {name: value for name, value in given.items() if name in self._inputs}
        answers: list[Any] = self._session.run(outputs, feed)
        return answers


Backend = TorchBackend | OnnxBackend


def exported(
    checkpoint: Path, digest: str, wish: str, accelerator: str, lanes: int = 1
) -> OnnxBackend | None:
    """The exported model beside a checkpoint, where it is wished for.

    Args:
        checkpoint: a file whose exported model would have its name with `.onnx`.
        digest: SHA-256 of the checkpoint.
        wish: torch, onnx, or auto: onnx if the model is there, up to date and on the CPU, and
            ONNX Runtime is installed.
        accelerator: what torch would run on: cpu or cuda.
        lanes: batches side by side.

    Raises:
        InputError: onnx is wished for and cannot be had.
    """
    path = checkpoint.with_suffix(".onnx")
    if wish == "torch" or (wish == "auto" and (accelerator != "cpu" or not path.is_file())):
        return None
    if accelerator != "cpu":
        raise InputError("backend=onnx runs on the CPU; use backend=torch or accelerator=cpu")
    try:
        return _demanded(path, checkpoint, digest, lanes)
    except InputError:
        if wish == "auto":
            return None
        raise


def _demanded(path: Path, checkpoint: Path, digest: str, lanes: int) -> OnnxBackend:
    if not path.is_file():
        command = f"skinmm export checkpoint={checkpoint}"
        raise InputError(f"backend=onnx: there is no {path}; make it: {command}")
    backend = OnnxBackend(path, lanes)
    if backend.metadata.get(KEY) != digest:
        raise InputError(f"{path} was exported from another checkpoint than {checkpoint}")
    return backend
