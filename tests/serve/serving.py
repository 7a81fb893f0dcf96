"""What tests of the service share: an application around a checkpoint, and requests to it."""

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.testclient import TestClient

from skinmm.serve.app import create_app
from skinmm.serve.desk import Desk
from skinmm.serve.service import Service

RECORD: Final = {"age": "55", "sex": "female", "site": "torso"}


def application(service: Service, *, places: int = 4, seconds: float = 60, **how: Any) -> FastAPI:
    return create_app(service, Desk(places, seconds), **how)


def client(app: FastAPI, **how: Any) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, **how)


def send(
    at: TestClient, image: bytes | None, path: str = "/v1/predict", **fields: Any
) -> "tuple[int, dict[str, Any]]":
    """A form with an image and fields: status and JSON."""
    files: dict[str, Any] = {} if image is None else {"image": ("a.jpg", image)}
    parts = [(name, (None, cell)) for name, cell in fields.items()]
    answer = at.post(path, files=[*files.items(), *parts] or [("frame", (None, ""))])
    return answer.status_code, answer.json()


def jpeg_of(pictures: Path, name: str = "ISIC_0000000") -> bytes:
    return (pictures / f"{name}.jpg").read_bytes()
