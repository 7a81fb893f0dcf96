"""Real processes on loopback: killed and resumed, over TLS; bytes on the wire; other clients."""

import datetime
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from micro_runs import micro_config

from skinmm.config import Config, DataConfig
from skinmm.config.remote_commands import FederateClientConfig, FederateServerConfig
from skinmm.models.checkpoint import load_card

pytest.importorskip("flwr")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from skinmm.federated import serve, take_part
from skinmm.federated.centre import Centre
from skinmm.federated.node import run_client

pytestmark = pytest.mark.slow
FORK = multiprocessing.get_context("fork")  # real processes, without the time of the imports
PATIENCE = 240.0
AUDIT_KEY = "a secret of the centres, 32 letters or more"


def write_cohort(root: Path, name: str, patients: int = 60) -> Path:
    """A table of records whose names and cells occur nowhere else."""
    root.mkdir()
    rng, rows = np.random.default_rng(len(name)), np.arange(2 * patients)
    target = (rows // 2 % 3 == 0).astype(int)
    device = np.where(
        rows < 2, f"RareDevice{name}", rng.choice(["Alphascope", "Betascope"], len(rows))
    )
    table = {
        "image_name": [f"IMG-{name}-{row}" for row in rows],
        "patient_id": [f"PAT-{name}-{row // 2}" for row in rows],
        "lesion_id": [f"LES-{name}-{row}" for row in rows],
        "age_approx": np.round(rng.normal(50 + 10 * target, 8), 5),
        "sex": rng.choice(["male", "female"], len(rows)),
        "anatom_site_general_challenge": rng.choice(["torso", "head/neck"], len(rows)),
        "device": device,
        "target": target,
    }
    pd.DataFrame(table).to_csv(root / "cohort.csv", index=False)
    return root


def server_settings(folder: Path, **settings: Any) -> FederateServerConfig:
    """The settings of a server for small networks of records."""
    config = micro_config("tabular_only", accelerator="cpu")
    data = DataConfig(name="csv", columns=["age", "sex", "site", "device"])
    config = replace(config, data=data, evaluation=replace(config.evaluation, resamples=20))
    plain = {item.name: getattr(config, item.name) for item in fields(Config)}
    return FederateServerConfig(**{**plain, "output": str(folder), **settings})


def client_settings(folder: Path, name: str, port: int, **settings: Any) -> FederateClientConfig:
    """The settings of a client, whose cohort is written."""
    root = folder / f"data_{name}"
    root = root if root.exists() else write_cohort(root, name)
    return FederateClientConfig(
        server=f"127.0.0.1:{port}",
        name=name,
        data=DataConfig(name="csv", root=str(root)),
        accelerator="cpu",
        workers=0,
        output=str(folder / name),
        **settings,
    )


def start(log: Path, function: Callable[..., Any], *args: Any) -> Any:
    """Start a function in a process of its own, which prints to a file."""

    def run() -> None:
        sys.stdout = sys.stderr = log.open("a")  # in place of what captures the test's output
        try:
            function(*args)
        except BaseException as error:
            print(f"ended: {type(error).__name__}: {error}", flush=True)  # noqa: T201
            os._exit(1)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    return process


def take_part_slowly(config: FederateClientConfig, number: int, seconds: float) -> None:
    """Take part, with one round that lasts, so that it can be interrupted."""
    train = Centre.train

    def wait_and_train(centre: Centre, task: Any) -> Any:
        if task.number == number:
            print(f"round {number} begins", flush=True)  # noqa: T201
            time.sleep(seconds)
        return train(centre, task)

    setattr(Centre, "train", wait_and_train)  # noqa: B010 - in this process alone
    take_part(config)


def wait_for(log: Path, text: str) -> None:
    """Wait until a file contains a text."""
    end = time.monotonic() + PATIENCE
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end, f"{text!r} is not in {log.name}: {log.read_text()[-2000:]}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_certificate(folder: Path) -> tuple[str, str]:
    """Write a certificate for 127.0.0.1, signed by itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "server.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / "server.key").write_bytes(private)
    return str(folder / "server.pem"), str(folder / "server.key")


def write_keys(folder: Path, names: str) -> str:
    """Write a private key for each client, and the file of the public ones."""
    lines = []
    for name in names:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        (folder / f"{name}.key").write_bytes(private)
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        lines.append(f"{public.decode()} {name}")
    (folder / "centres.txt").write_text("\n".join(lines) + "\n")
    return str(folder / "centres.txt")


def test_killed_client_and_killed_server_cost_a_round_and_nothing_is_trained_twice(
    tmp_path: Path,
) -> None:
    port, folder = free_port(), tmp_path / "server"
    certificate, private_key = write_certificate(tmp_path)
    network = {
        "port": port,
        "certificate": certificate,
        "private_key": private_key,
        "clients": write_keys(tmp_path, "abcd"),
    }
    (tmp_path / "audit.key").write_text(AUDIT_KEY)
    logs = {name: tmp_path / f"{name}.log" for name in "abcd"}

    def settings(name: str) -> FederateClientConfig:
        return client_settings(
            tmp_path,
            name,
            port,
            certificate=certificate,
            private_key=str(tmp_path / f"{name}.key"),
            audit_key=str(tmp_path / "audit.key"),
        )

    def join(name: str, number: int = 0, seconds: float = 0) -> Any:
        return start(logs[name], take_part_slowly, settings(name), number, seconds)

    stranger = replace(settings("a"), private_key=None, name="stranger", output=str(tmp_path / "x"))
    server_log, whole = tmp_path / "server.log", {"rounds": 4, "min_clients": 3}
    server = start(server_log, serve, server_settings(folder, **network, **whole))
    wait_for(server_log, "listening")
    outsider = start(tmp_path / "x.log", take_part, stranger)
    clients = {"a": join("a", 3, 12), "b": join("b"), "c": join("c"), "d": join("d", 2, 60)}
    try:
        wait_for(logs["d"], "round 2 begins")
        os.kill(clients["d"].pid, signal.SIGKILL)
        clients["d"].join()
        wait_for(server_log, "round 2 of 4: a, b, c")
        clients["d"] = join("d")
        wait_for(logs["a"], "round 3 begins")
        wait_for(logs["b"], "round 3: trained")
        wait_for(logs["c"], "round 3: trained")
        os.kill(server.pid, signal.SIGKILL)
        server.join()
        server = start(server_log, serve, server_settings(folder, **network, resume=str(folder)))
        for process in (server, *clients.values()):
            process.join(PATIENCE)
            assert process.exitcode == 0
    finally:
        for process in (server, outsider, *clients.values()):
            process.kill()
    lines = server_log.read_text()
    assert "round 2: d: left out: " in lines
    assert "resumed after round 2" in lines
    assert re.search(r"round 4 of 4: .*b, c", lines)
    assert "stranger" not in lines
    assert "this key is unknown" in (tmp_path / "x.log").read_text()
    for name, log in logs.items():
        trained = re.findall(r"round (\d): trained to epoch", log.read_text())
        assert len(trained) == len({*trained}), name
        assert (tmp_path / name / "report.html").is_file()
    assert "round 3: already trained; sending the stored answer again" in logs["b"].read_text()
    weights = [load_card(tmp_path / name / "checkpoints" / "best.ckpt")[1] for name in "abcd"]
    for other in weights[1:]:
        assert all(np.array_equal(other[n], weights[0][n]) for n in other)
    card = (folder / "card.md").read_text()
    assert "| b | 4 | 120 | 33.3% | not stated |" in card


@contextmanager
def recording(port: int) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy to a port; yields its own port, and the bytes of both directions."""
    chunks: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                chunks.append(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], chunks
    listener.close()


def build_third_party() -> tuple[ClientApp, Callable[[], bool]]:
    """A client of somebody else: Flower's public API, and the messages that the module documents.

    Its first answers are wrong: not finite, then of another architecture.
    """
    app, calls = ClientApp(), {"train": 0, "finished": 0}
    numeric = {"kind": "numeric", "mean": 50.0, "scale": 10.0, "values": [], "rows": 40}
    words = {"kind": "categorical", "mean": 0.0, "scale": 1.0, "rows": 40}
    common = {"unit": "", "is_truth": False}

    @app.query("describe")
    def describe(message: Message, _: Context) -> Message:
        question = json.loads(message.content["config"]["question"])  # type: ignore[arg-type]
        assert question["config"]["data"]["columns"] == ["age", "sex", "site", "device"]
        columns = [
            {"name": "age", **numeric, **common},
            {"name": "sex", **words, **common, "values": ["female", "male"]},
            {"name": "site", **words, **common, "values": ["torso"]},
            {"name": "device", **words, **common, "values": ["Gammascope"]},
        ]
        content = {"name": "third", "classes": ["benign", "malignant"], "columns": columns}
        answer = ConfigRecord({"answer": json.dumps({**content, "facts": {}})})
        return Message(RecordDict({"config": answer}), reply_to=message)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        calls["train"] += 1
        received: Any = message.content["arrays"]
        arrays = {name: array.numpy() for name, array in received.items()}
        first = next(iter(arrays))
        if calls["train"] == 1:
            arrays[first] = np.full_like(arrays[first], np.nan)
        if calls["train"] == 2:
            arrays[first] = np.zeros((3, 3), np.float32)
        record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
        metrics = MetricRecord({"num-examples": 40})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.query("finish")
    def finish(message: Message, _: Context) -> Message:
        calls["finished"] = 1
        return Message(RecordDict({"metrics": MetricRecord({"done": 1})}), reply_to=message)

    return app, lambda: calls["finished"] == 1


def take_part_as_third_party(port: int) -> None:
    app, is_finished = build_third_party()
    run_client(app, f"127.0.0.1:{port}", tls=False, is_finished=is_finished)


def test_the_wire_carries_no_row_and_a_third_party_takes_part(tmp_path: Path) -> None:
    port, folder, log = free_port(), tmp_path / "server", tmp_path / "server.log"
    (tmp_path / "audit.key").write_text(AUDIT_KEY)
    server = start(log, serve, server_settings(folder, port=port, rounds=2, min_clients=3))
    wait_for(log, "listening")
    processes = [server, start(tmp_path / "t.log", take_part_as_third_party, port)]
    with recording(port) as (proxy, chunks):
        key = {"audit_key": str(tmp_path / "audit.key")}
        for name in "ab":
            settings = client_settings(tmp_path, name, proxy, **key)
            processes.append(start(tmp_path / f"{name}.log", take_part, settings))
        try:
            for process in processes:
                process.join(PATIENCE)
                assert process.exitcode == 0, log.read_text()
        finally:
            for process in processes:
                process.kill()
        wire = b"".join(chunks)
    lines = log.read_text()
    assert "round 1: third: left out: array " in lines
    assert "round 1: third: left out: another architecture: " in lines
    assert "round 1: 2 of 3 clients; the round is repeated" in lines
    assert "round 2 of 2: a, b, third" in lines
    assert (
        "| third | 2 | not stated | not stated | not stated |" in (folder / "card.md").read_text()
    )

    assert len(wire) > 10_000
    for present in (b"fusion", b"Alphascope", b"NUMPY", b"agreement"):
        assert present in wire
    secrets = {str(tmp_path), "cohort.csv", AUDIT_KEY}
    for name in "ab":
        table = pd.read_csv(tmp_path / f"data_{name}" / "cohort.csv", dtype=str)
        for column in ("image_name", "patient_id", "lesion_id", "age_approx"):
            secrets |= {*table[column]}
        secrets.add(f"RareDevice{name}")
    assert [text for text in secrets if text.encode() in wire] == []
    weights = [load_card(tmp_path / name / "checkpoints" / "best.ckpt") for name in "ab"]
    words = weights[0][0].encoder["columns"][3]["values"]
    assert words == ["Alphascope", "Betascope", "Gammascope"]
