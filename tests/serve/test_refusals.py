"""What the service refuses, and that it lives on."""

import asyncio
import hashlib
import io
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("prometheus_client", exc_type=ImportError)

import uvicorn
from dicom_files import dicom, dicom_from_jpeg
from fastapi.testclient import TestClient
from malformed import jpeg_bomb, malformed, png
from quick_runs import ROOT, best
from served import RECORD, application, at, client, jpeg_of, send, service

from skinmm.cli import main as cli
from skinmm.config.addresses import is_loopback
from skinmm.errors import InputError
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue
from skinmm.serve.forms import MAX_IMAGE, check_name
from skinmm.serve.middleware import Keys
from skinmm.serve.responses import ProblemError

KEY: Final = "5" * 64
MALFORMED: Final = 300
DEMO: Final = ROOT / "skinmm" / "demo" / "images"


__all__ = ["at", "service"]  # fixtures


async def read_nothing() -> None:
    """Stand in for the reader of a form."""


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 422, "has no file"),
        (b"<html>", 422, "not an image of a supported format"),
        (b"\xff\xd8\xff\xe0 no more", 422, "cannot be used"),
        (png(15, 40), 422, "15x40 pixels are too few: each side needs 16"),
        (png(32, 40), 422, "a single colour"),
        (png(20_000, 20_000), 413, "the limit is 200 megapixels"),
        (jpeg_bomb(jpeg_of(DEMO)), 413, "the limit is 200 megapixels"),
        (dicom(np.zeros((4, 4, 3), np.uint8), Rows=60_000, Columns=60_000), 413, "megapixels"),
        (bytes(MAX_IMAGE + 1), 413, "20,000,000"),
        (bytes(MAX_IMAGE + 200_000), 413, "longer than"),
    ],
    ids=[
        *("empty", "gif", "broken", "few", "colour"),
        *("png-bomb", "jpeg-bomb", "dicom-bomb", "bytes", "body"),
    ],
)
def test_a_file_that_cannot_be_used(at: TestClient, data: bytes, status: int, reason: str) -> None:
    said, problem = send(at, data)
    assert (said, problem["status"]) == (status, status)
    assert reason in problem["detail"]
    assert problem.keys() == {"type", "title", "status", "detail"}


def test_what_does_not_belong_in_the_form(at: TestClient, pictures: Path) -> None:
    image = jpeg_of(pictures)
    assert send(at, None, **RECORD)[0] == 422
    assert "unknown field 'diagnosis'" in send(at, image, diagnosis="nv")[1]["detail"]
    assert (
        "frame: Input should be greater than or equal to 1"
        in send(at, image, frame="-1")[1]["detail"]
    )
    assert "#frame=2 does not exist" in send(at, image, frame="2")[1]["detail"]
    assert at.post("/v1/predict", json={}).status_code == 415
    twice = at.post("/v1/predict", files=[("image", ("a", image)), ("image", ("b", image))])
    assert twice.status_code == 422
    assert twice.json()["detail"] == "the form has more than one file; send fewer"
    ages = [("image", ("a", image)), ("age", (None, "5")), ("age", (None, "6"))]
    assert "twice" in at.post("/v1/predict", files=ages).json()["detail"]
    assert at.post("/v1/predict", files=[("age", ("a", image))]).status_code == 422
    assert send(at, image, site="x" * 2000)[0] == 400
    answer = at.get("/v1/predict")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert answer.headers["allow"] == "POST"
    assert at.get("/v1/nothing").json()["status"] == 404


def test_words_that_nobody_knows_are_missing_as_in_a_batch(at: TestClient, pictures: Path) -> None:
    image = jpeg_of(pictures)
    for name, cell in (("age", "130"), ("sex", "diverse"), ("site", "nowhere")):
        status, said = send(at, image, **{**RECORD, name: cell})
        assert (status, said["unknown"], said["missing"]) == (200, [name], [name])
        table = pd.DataFrame([{**RECORD, name: cell, "image": "a.jpg"}]).to_csv(index=False)
        files = [("table", ("t.csv", table)), ("images", ("a.jpg", image))]
        (row,) = at.post("/v1/predict/batch", files=files).json()["rows"]
        assert {key: row[key] for key in said if key != "notice"} == {
            key: cell for key, cell in said.items() if key != "notice"
        }
    status, said = send(at, image, age="unknown", sex="", site="n/a")
    assert (status, said["unknown"], said["missing"]) == (200, [], ["age", "sex", "site"])


def test_a_frame_of_several_is_named(at: TestClient, pictures: Path) -> None:
    data = dicom_from_jpeg(jpeg_of(pictures), jpeg_of(pictures, "ISIC_0000001"))
    assert "2 frames" in send(at, data)[1]["detail"]
    second = send(at, data, frame="2", **RECORD)[1]
    alone = send(at, jpeg_of(pictures, "ISIC_0000001"), **RECORD)[1]
    assert second["malignancy"] == pytest.approx(alone["malignancy"], abs=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *("../patients.csv", "/etc/passwd", "a/b.jpg", "..", ".hidden.jpg", "a\0.jpg", "C:\\a.jpg"),
        *("x.h5", "x.tfrec", "a.jpg#frame=x", "a#b.jpg", "x" * 300, "", "a\n.jpg"),
    ],
)
def test_a_path_is_no_name(at: TestClient, pictures: Path, name: str) -> None:
    with pytest.raises(ProblemError):
        check_name(name)
    if name and name.isprintable():
        table = f'image,age\n"{name}",5\n'
        answer = at.post("/v1/predict/batch", files=[("table", ("t.csv", table))])
        assert (answer.status_code, "root:" in answer.text) == (422, False)
    # The name of a single upload is never looked at.
    files = {"image": (name or "a", jpeg_of(pictures))}
    assert at.post("/v1/predict", files=files).status_code in (200, 400)


@pytest.mark.parametrize("name", ["a.jpg", "ISIC_0000000", "1.2.840.10008.5", "x (1).PNG", "ä.dcm"])
def test_a_name_is_a_name(name: str) -> None:
    assert check_name(name) == name
    assert check_name(f"{name}#frame=3") == f"{name}#frame=3"


@pytest.mark.parametrize("table", ["", "image\n", "image\na,b\n", "a,a\n1,2\n", '"', "\xff"])
def test_a_table_that_is_none(at: TestClient, table: str) -> None:
    files = [("table", ("t.csv", table.encode("latin-1")))]
    assert at.post("/v1/predict/batch", files=files).status_code == 422
    assert at.post("/v1/predict/batch", files=[*files, *files]).status_code == 422
    images = [("images", (f"{number}.png", png(20, 20))) for number in range(33)]
    answer = at.post("/v1/predict/batch", files=[*files, *images])
    assert (answer.status_code, answer.json()["detail"]) == (
        *(422, "the form has more than 33 files; send fewer"),
    )
    many = "image\n" + "a.jpg\n" * 33
    answer = at.post("/v1/predict/batch", files=[("table", ("t.csv", many))])
    assert "the limit is 32" in answer.json()["detail"]


def test_every_dialect_of_a_table_is_the_same_batch(at: TestClient, pictures: Path) -> None:
    answers = []
    for text in (
        "image,age,sex,site\nI.jpg,55,male,torso\n",
        "image;age;sex;site\r\nI.jpg;55;male;torso\r\n",
        "image\tage\tsex\tsite\nI.jpg\t55\tmale\ttorso\n",
        "sep=;\nimage;age;sex;site\nI.jpg;55;male;torso\n",
        "image,age,sex,site,,\nI.jpg,55,male,torso,,\n\n",
    ):
        files = [("table", ("t.csv", text)), ("images", ("I.jpg", jpeg_of(pictures)))]
        answers.append(at.post("/v1/predict/batch", files=files).json()["rows"])
    assert answers[0][0]["malignancy"] is not None
    assert all(answer == answers[0] for answer in answers)
    short = at.post("/v1/predict/batch", files=[("table", ("t.csv", "image,age\nI.jpg\n"))])
    assert "table: row 2 has 1 cells, the header has 2" in short.json()["detail"]


def test_keys_open_all_but_health(service: CasePredictor, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n{hashlib.sha256(KEY.encode()).hexdigest()}  -\n")
    with client(application(service, keys=Keys.read(file))) as opened:
        for headers in ({}, {"X-API-Key": "6" * 64}, {"Authorization": f"Bearer {KEY}x"}):
            answer = opened.get("/v1/model", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        answer = opened.post("/v1/predict", content=b"x", headers={"Authorization": "Basic ???"})
        assert answer.status_code == 401
        assert opened.get("/metrics").status_code == 401
        assert opened.get("/healthz").status_code == 200
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}):
            assert opened.get("/v1/model", headers=headers).status_code == 200
        assert opened.get("/v1/model", auth=("doctor", KEY)).status_code == 200


def test_a_key_file_that_holds_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    for text, reason in (
        ("", "has no key"),
        ("secret\n", "line 1 is not a SHA-256 digest"),
        (f"{KEY} ward\n{KEY[::-1][:-1]}6 ward\n", "line 2: the name 'ward' is taken"),
        (f"{KEY} anyone\n", "'anyone' is taken"),
        (f"{KEY} skinmm feedback\n", "'skinmm feedback' is taken"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=reason):
            Keys.read(file)
    with pytest.raises(InputError, match="cannot be read"):
        Keys.read(tmp_path / "none.txt")


def test_others_are_let_in_only_with_keys(
    both: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = f"checkpoint={best(both)}"
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104
        assert not is_loopback(host)
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", checkpoint, f"port={port}"]) == 2
    message = f"host=127.0.0.1 port={port}: Address already in use; choose another port or host"
    assert message in capsys.readouterr().err
    assert cli.main(["serve", checkpoint, "host=0.0.0.0"]) == 2
    assert "needs keys=FILE" in capsys.readouterr().err
    assert cli.main(["serve", checkpoint, f"keys={tmp_path / 'a=b.txt'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert cli.main(["serve", f"checkpoint={tmp_path / 'none.ckpt'}"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_page_of_another_name_does_not_reach_it(service: CasePredictor) -> None:
    app = application(service, hosts={"localhost", "127.0.0.1"})
    with client(app, base_url="http://localhost:8000") as opened:
        assert opened.get("/healthz").status_code == 200
        assert opened.get("/v1/model", headers={"host": "evil.example"}).status_code == 421


def test_every_answer_has_security_headers(at: TestClient) -> None:
    for path in ("/v1/model", "/healthz", "/v1/nothing", "/v1/predict"):
        headers = at.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_who_finds_all_places_taken_comes_again(service: CasePredictor, pictures: Path) -> None:
    queue = RequestQueue(1, 60)
    go = threading.Event()

    async def both_at_once() -> None:
        running = asyncio.create_task(queue.run(read_nothing, lambda _: go.wait(60)))
        await asyncio.sleep(0)
        assert queue.is_full
        with pytest.raises(ProblemError) as refused:
            await queue.run(read_nothing, lambda _: None)
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert refused.value.status == 429
        go.set()
        assert await running
        assert queue.taken == 0

    asyncio.run(both_at_once())
    queue.close()
    full = application(service, places=1)
    with client(full) as opened:
        assert send(opened, jpeg_of(pictures))[0] == 200


def test_a_late_answer_is_none_and_its_place_is_taken_until_it_ends() -> None:
    queue = RequestQueue(1, 0.05)
    go = threading.Event()

    async def late() -> None:
        with pytest.raises(ProblemError) as over:
            await queue.run(read_nothing, lambda _: go.wait(60))
        assert over.value.status == 503
        assert queue.taken == 1
        go.set()
        for _ in range(500):
            await asyncio.sleep(0.01)
            if not queue.taken:
                break
        assert queue.taken == 0
        with pytest.raises(ProblemError) as slow:
            await queue.run(lambda: asyncio.sleep(60), lambda _: None)
        assert slow.value.status == 408

    asyncio.run(late())
    queue.close()


def test_a_slow_client_keeps_nobody_else_waiting(service: CasePredictor, pictures: Path) -> None:
    """Over a real socket: a body that never ends is answered, and its place is free again."""
    app = application(service, seconds=0.5)
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    head = (
        "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(4)]
    for each in slow:
        each.sendall(head.encode())
    answers = [each.recv(4096).partition(b"\r\n")[0] for each in slow]
    assert answers == [b"HTTP/1.1 408 Request Timeout"] * 4
    image = {"image": ("a.jpg", jpeg_of(pictures))}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", files=image)
    assert answer.status_code in (200, 503)  # where half a second is too short for this machine
    for each in slow:
        each.close()
    server.should_exit = True
    thread.join(30)


def test_an_error_of_ours_says_nothing_of_the_patient(
    service: CasePredictor,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("age 57")

    monkeypatch.setattr(service, "predict_table", broken)
    with client(application(service)) as opened:
        status, problem = send(opened, jpeg_of(pictures), age="57")
    assert status == 500
    assert "57" not in problem["detail"] + caplog.text
    assert "RuntimeError at" in caplog.text


# Starlette leaves the file of a part that does not end to the garbage collector; it is in memory.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_malformed_is_an_error_of_the_service(at: TestClient, pictures: Path) -> None:
    statuses = []
    for body, kind in malformed(pictures, MALFORMED):
        headers = {"content-type": kind.replace("\n", " ").replace("\r", " ")}
        try:
            answer = at.post("/v1/predict", content=io.BytesIO(body), headers=headers)
        except UnicodeEncodeError:
            continue
        statuses.append(answer.status_code)
        if answer.status_code != 200:  # damage that a picture bears
            assert answer.json()["status"] == answer.status_code
    assert {status // 100 for status in statuses} <= {2, 4}
    assert sum(status >= 400 for status in statuses) > MALFORMED // 2
    assert send(at, jpeg_of(pictures), **RECORD)[0] == 200
