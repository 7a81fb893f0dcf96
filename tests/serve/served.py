"""What tests of the service share: an application around a checkpoint, and requests to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from quick_runs import ROOT, best

from skinmm.config.remote_commands import ServeConfig
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue, create_app
from skinmm.serve.cases import CaseRecorder
from skinmm.serve.store import Store

RECORD: Final = {"age": "55", "sex": "female", "site": "torso"}
POSTGRES: Final = "SKINMM_POSTGRES"
START: Final = "import sys; from skinmm.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def service(both: Path) -> CasePredictor:
    """What a checkpoint says."""
    return CasePredictor(ServeConfig(accelerator="cpu"), [best(both)])


@pytest.fixture(scope="module")
def at(service: CasePredictor) -> Iterator[TestClient]:
    """The API of that checkpoint, without a store."""
    with client(application(service)) as opened:
        yield opened


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)],
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store of either kind, as the setting names it."""
    if request.param == "sqlite":
        yield str(tmp_path / "cases.db")
        return
    from sqlalchemy import create_engine, text

    server = os.environ[POSTGRES]
    name = f"skinmm_{os.getpid()}_{abs(hash(request.node.nodeid)) % 10**8}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as database:
        database.execute(text(f"CREATE DATABASE {name}"))
        yield engine.url.set(database=name).render_as_string(hide_password=False)
        database.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def application(
    service: CasePredictor,
    *,
    places: int = 4,
    seconds: float = 60,
    store: str | None = None,
    **how: Any,
) -> FastAPI:
    images = how.pop("images", False)
    recorder = CaseRecorder(service, Store.open(store), images=images) if store else None
    return create_app(service, RequestQueue(places, seconds), recorder=recorder, **how)


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


@contextmanager
def process(checkpoint: Path, *options: str, **environment: str) -> "Iterator[Running]":
    """The real command as a process of its own, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (f"checkpoint={checkpoint}", f"port={port}", *options)
    server = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *given],
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    running = Running(server, port)
    try:
        running.wait()
        yield running
    finally:
        server.terminate()
        server.wait(5)
        assert server.returncode in (143, -signal.SIGKILL)


class Running:
    """A service that runs as a process."""

    def __init__(self, server: "subprocess.Popen[bytes]", port: int) -> None:
        """Takes the process."""
        self.server, self.port = server, port
        self.address = f"http://localhost:{port}"

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(600):
            with suppress(URLError):
                urlopen(f"{self.address}/readyz", timeout=5).close()  # noqa: S310
                return
            assert self.server.poll() is None
            time.sleep(0.2)
        raise AssertionError("it never answered")

    def kill(self) -> None:
        """As a loss of power would, for the process."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(60)
