"""DICOMweb against a real Orthanc, with failures made by a small HTTP server in front of it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dicom_files import dicom, dicom_from_jpeg
from pydicom import dcmread
from quick_runs import ROOT, best

from skinmm.cli import main
from skinmm.config.remote_commands import DicomwebConfig
from skinmm.errors import InputError

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
Said = pytest.CaptureFixture[str]
needs_orthanc = pytest.mark.skipif(
    shutil.which("Orthanc") is None
    or not PLUGIN.is_file()
    or None in (find_spec("highdicom"), find_spec("dicomweb_client"), find_spec("sqlalchemy")),
    reason="needs Orthanc with its DICOMweb plugin, and skinmm[dicom,dicomweb,serve]",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Orthanc:
    """A running archive."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        config = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(config))
        self._process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")],  # noqa: S607
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            try:
                self.get("/system")
                break
            except OSError:
                time.sleep(0.1)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status == 200, data
        return data

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path))

    def send(self, data: bytes) -> str:
        return str(json.loads(self.ask("POST", "/instances", data))["ID"])

    def find(self, modality: str) -> list[bytes]:
        """The files of a modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        ids = json.loads(self.ask("POST", "/tools/find", json.dumps(query).encode()))
        return [self.ask("GET", f"/instances/{name}/file") for name in ids]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    (tmp_path / "storage").mkdir()
    archive = Orthanc(tmp_path)
    yield archive
    archive.stop()


class Front(ThreadingHTTPServer):
    """Passes requests to an archive, or answers them itself as `fail` decides."""

    def __init__(self, archive: Orthanc) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive, self.failures, self.tokens = archive, {"POST": [0], "GET": [0]}, [""]
        self.authorisations: list[str] = []
        self.broken: list[bytes] = []  # UIDs whose requests always fail
        self.status = 503  # of these failures
        self.requests: list[bytes] = []  # path and body
        self.cut = 0  # bytes that are missing at the end of answers
        self.ignores_offset = False
        Thread(target=self.serve_forever, daemon=True).start()

    def fail(self, method: str, path: str, token: str) -> int:
        """Status of a failure, 0: none; below zero, a pause in seconds."""
        self.authorisations.append(token)
        if token not in self.tokens:
            return 401
        planned = self.failures[method] if "/studies" in path or "/instances" in path else [0]
        return planned.pop(0) if len(planned) > 1 else planned[0]


class _Handler(BaseHTTPRequestHandler):
    def _pass(self) -> None:
        server: Any = self.server
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        status = server.fail(self.command, self.path, self.headers.get("Authorization", ""))
        server.requests.append(self.path.encode() + body)
        is_broken = any(uid in server.requests[-1] for uid in server.broken)
        if is_broken:
            status = server.status
        if status < 0:
            time.sleep(-status)
        if status < 0 and is_broken:
            return  # without an answer
        if status > 0:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/system")  # as to a page for login
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = HTTPConnection("127.0.0.1", server.archive.port, timeout=60)
        names = ("Content-Type", "Accept")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        path = (
            re.sub("offset=[0-9]+", "offset=0", self.path) if server.ignores_offset else self.path
        )
        connection.request(self.command, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        data = data[: len(data) - server.cut]
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", ""))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client had waited long enough

    do_GET = do_POST = _pass  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def front(orthanc: Orthanc) -> Iterator[Front]:
    server = Front(orthanc)
    yield server
    server.shutdown()
    server.server_close()


def lesion(pictures: Path, number: int) -> bytes:
    """One picture of the included cohort as the only image of its study."""
    stream = sorted(pictures.glob("*.jpg"))[number].read_bytes()
    uid = f"1.2.840.99.{number}"
    study = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.2"}
    return dicom_from_jpeg(
        stream, PatientID=f"P{number}", PatientSex="F", PatientAge="050Y", StudyID="7", **study
    )


def watch_command(both: Path, port: int, store: Path, *more: str) -> list[str]:
    url = f"url=http://127.0.0.1:{port}/dicom-web"
    return ["dicomweb", f"checkpoint={best(both)}", url, f"store={store}", *more]


def check_evidence(orthanc: Orthanc, images: int) -> None:
    """Every image has one report, whose evidence is an image that the archive has."""
    reports = [dcmread(BytesIO(data)) for data in orthanc.find("SR")]
    evidence = []
    for report in reports:
        (study,) = report.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        (image,) = series.ReferencedSOPSequence
        path = f"{study.StudyInstanceUID}/series/{series.SeriesInstanceUID}"
        path = f"/dicom-web/studies/{path}/instances/{image.ReferencedSOPInstanceUID}/metadata"
        (resolved,) = orthanc.get(path)
        assert resolved["00080018"]["Value"] == [image.ReferencedSOPInstanceUID]
        assert resolved["00100020"]["Value"] == [report.PatientID]
        evidence.append(image.ReferencedSOPInstanceUID)
    assert len(evidence) == len({*evidence}) == images


@needs_orthanc
def test_images_get_one_report_and_one_map_each(
    orthanc: Orthanc, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    for number in range(3):
        orthanc.send(lesion(pictures, number))
    orthanc.send(dicom(None, PatientID="P9", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1"))
    command = watch_command(both, orthanc.port, tmp_path / "cases.db")
    assert main.main(command) == 3
    told = capsys.readouterr()
    assert f"images: 3 sent, 0 ready, 1 parked (in all, store: {tmp_path / 'cases.db'})" in told.out
    assert "parked (" in told.err
    check_evidence(orthanc, 3)
    assert len(orthanc.find("OT")) == 3
    for number, data in enumerate(orthanc.find("SR")):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        if shutil.which("dciodvfy"):
            checked = subprocess.run(
                ["dciodvfy", str(path)],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Error" not in checked.stderr
    assert main.main([*command, "modality=[XC,OT]"]) == 3  # the maps are no new images
    check_evidence(orthanc, 3)


@needs_orthanc
def test_failures_are_named_and_retried_or_parked(
    front: Front, both: Path, pictures: Path, tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("skinmm.serve.dicomweb._FIRST_PAUSE", 0.01)
    front.archive.send(lesion(pictures, 0))
    command = watch_command(both, front.server_port, tmp_path / "cases.db", "attempts=3")
    front.failures["GET"] = [503, -3, 0]
    front.failures["POST"] = [500, 0]
    assert main.main([*command, "timeout=1"]) == 0
    told = capsys.readouterr()
    assert "attempt 1: search: HTTP 503" in told.err
    assert "attempt 2: search: no answer (" in told.err
    assert "attempt 1: store: HTTP 500" in told.err
    check_evidence(front.archive, 1)
    front.archive.send(lesion(pictures, 1))
    front.failures["POST"] = [409]
    assert main.main(command) == 3
    assert "1.2.840.99.1.2: its result is parked (store: HTTP 409" in capsys.readouterr().err
    assert main.main(command) == 3  # as long as it is parked
    assert main.main([*command, "dismiss=[1.2.840.99.1.2,1.2.3]"]) == 2
    assert "dismiss=1.2.3: no parked image" in capsys.readouterr().err
    assert main.main(command) == 3  # all or none
    front.failures["POST"] = [502]
    assert main.main([*command, "parked=true"]) == 3
    assert "postponed until the others are done (store: HTTP 502" in capsys.readouterr().err
    front.failures["POST"], front.failures["GET"] = [0], [503]
    assert main.main(command) == 3
    assert "nothing is lost: run the command again" in capsys.readouterr().err
    front.failures["GET"] = [0]
    assert main.main(command) == 0
    check_evidence(front.archive, 2)
    front.archive.send(lesion(pictures, 2))
    front.failures["POST"] = [409]
    assert main.main(command) == 3
    front.failures["POST"] = [0]
    assert main.main([*command, "dismiss=[1.2.840.99.2.2]"]) == 0
    assert main.main([*command, "parked=true"]) == 0
    assert "2 sent, 0 ready, 0 parked" in capsys.readouterr().out
    check_evidence(front.archive, 2)


@needs_orthanc
@pytest.mark.parametrize("status", [503, 429, 403, 302, -3])
def test_an_image_that_always_fails_blocks_no_other(
    status: int, front: Front, both: Path, pictures: Path, tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def pause(seconds: float) -> None:
        if seconds == 7.5:
            raise KeyboardInterrupt  # between two searches of the watcher

    monkeypatch.setattr("skinmm.serve.dicomweb.sleep", pause)
    for number in range(3):
        front.archive.send(lesion(pictures, number))
    unread, unsent = b"instances/1.2.840.99.0.2", b"\x001.2.840.99.1.2"
    front.broken, front.status = [unread, unsent], status
    command = watch_command(both, front.server_port, tmp_path / "cases.db", "attempts=2")
    command.append("timeout=1")
    assert main.main([*command, "watch=7.5"]) == 130
    told = capsys.readouterr().err
    named = {302: "the server redirects", -3: "no answer (ReadTimeout)"}
    reason = named.get(status, f"HTTP {status}")
    assert f"1.2.840.99.0.2: postponed until the others are done (read: {reason}" in told
    assert f"1.2.840.99.1.2: postponed until the others are done (store: {reason}" in told
    check_evidence(front.archive, 1)

    front.archive.send(lesion(pictures, 3))
    front.requests.clear()
    assert main.main(command) == 3
    assert "images: 2 sent, 2 ready, 0 parked" in capsys.readouterr().out
    places = [n for n, request in enumerate(front.requests) if unread in request]
    others = [n for n, request in enumerate(front.requests) if b"instances/1.2.840.99.3" in request]
    assert len(places) == 1
    assert places[0] > max(others)
    check_evidence(front.archive, 2)

    front.broken = []
    assert main.main(command) == 0
    check_evidence(front.archive, 4)


@needs_orthanc
def test_a_token_that_expires_is_renewed_from_its_file(
    front: Front, both: Path, pictures: Path, tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("skinmm.serve.dicomweb._FIRST_PAUSE", 0.01)
    token = tmp_path / "token"
    token.write_text("secret-1\n")
    monkeypatch.setenv("SKINMM_DICOMWEB_TOKEN_FILE", str(token))
    front.tokens = ["Bearer secret-2"]
    front.archive.send(lesion(pictures, 0))
    command = watch_command(both, front.server_port, tmp_path / "cases.db", "attempts=2")
    assert main.main(command) == 3
    told = capsys.readouterr()
    assert (
        "search: HTTP 401 Unauthorized, the token is wrong or expired: renew SKINMM_DICOMWEB_TOKEN"
        in told.err
    )
    token.write_text("secret-2\n")
    assert main.main(command) == 0
    assert "secret" not in told.err + told.out + capsys.readouterr().err
    assert {*front.authorisations} == {"Bearer secret-1", "Bearer secret-2"}
    check_evidence(front.archive, 1)


@needs_orthanc
def test_a_result_that_the_archive_already_has_counts_as_stored(front: Front) -> None:
    from skinmm.serve.dicomweb import RefusedError, Server

    def result(uid: str) -> bytes:
        study = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1"}
        return dicom(None, PatientID="P9", SOPInstanceUID=uid, **study)

    url = f"http://127.0.0.1:{front.server_port}/dicom-web"
    server = Server(DicomwebConfig(url=url, store="cases.db"))
    server.store([result("1.2.9.2")])
    front.failures["POST"] = [409]
    server.store([result("1.2.9.2")])
    with pytest.raises(RefusedError, match="store: HTTP 409"):
        server.store([result("1.2.9.2"), result("1.2.9.3")])


@needs_orthanc
@pytest.mark.parametrize("status", [302, 202])
def test_a_result_that_the_archive_does_not_confirm_stays_ready(
    status: int, front: Front, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    """An empty answer of 202, or that of a page for login, is no success."""
    front.archive.send(lesion(pictures, 0))
    front.failures["POST"] = [status]
    command = watch_command(both, front.server_port, tmp_path / "cases.db", "attempts=1")
    assert main.main(command) == 3
    reason = {302: "the server redirects; set url", 202: "does not confirm the result"}[status]
    told = capsys.readouterr()
    assert reason in told.err
    assert "0 sent, 1 ready" in told.out
    front.failures["POST"] = [0]
    assert main.main(command) == 0
    check_evidence(front.archive, 1)


@needs_orthanc
def test_a_search_has_filters_and_an_end(
    front: Front, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    """A server whose root answers every page with the same list is no DICOMweb server."""
    from skinmm.serve.dicomweb import Server, UnavailableError

    for number in range(3):
        front.archive.send(lesion(pictures, number))
    command = watch_command(both, front.server_port, tmp_path / "cases.db")
    assert main.main([*command, "filters={StudyInstanceUID: 1.2.840.99.1}"]) == 0
    assert "images: 1 sent, 0 ready, 0 parked" in capsys.readouterr().out
    assert main.main([*command, "filters=StudyDate"]) == 2
    assert "filters=StudyDate: must be pairs" in capsys.readouterr().err
    wrong = {"StudyDat: 20261101-": "no DICOM keyword", "Modality: DMS": "set modality"}
    for text, reason in {**wrong, "StudyDate: 2026-11-01": "must be YYYYMMDD"}.items():
        assert main.main([*command, f"filters={{{text}}}"]) == 2
        assert reason in capsys.readouterr().err
    server = Server(DicomwebConfig(url=f"http://127.0.0.1:{front.server_port}", store="cases.db"))
    with pytest.raises(UnavailableError, match="the answer is not DICOM; check url"):
        [*server.find()]
    front.ignores_offset = True
    server = Server(
        DicomwebConfig(url=f"http://127.0.0.1:{front.server_port}/dicom-web", store="cases.db")
    )
    assert len({*server.find()}) == 3


@needs_orthanc
def test_a_damaged_image_is_parked(front: Front) -> None:
    from skinmm.serve.dicomweb import Image, RefusedError, Server

    url = f"http://127.0.0.1:{front.server_port}/dicom-web"
    server = Server(DicomwebConfig(url=url, store="cases.db"))
    uids = Image("1.2.9", "1.2.9.1", "1.2.9.2")
    study = dict(
        zip(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), uids, strict=True)
    )
    front.archive.send(dicom(None, PatientID="P9", **study))
    assert server.read(uids)[0]
    front.cut = 5
    with pytest.raises(RefusedError, match="read: the answer is not DICOM"):
        server.read(uids)


@needs_orthanc
def test_a_token_file_that_is_missing_for_a_while_parks_nothing(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skinmm.serve.dicomweb import Image, Server, UnavailableError

    monkeypatch.setenv("SKINMM_DICOMWEB_TOKEN_FILE", str(tmp_path / "token"))
    url = f"http://127.0.0.1:{front.server_port}/dicom-web"
    with pytest.raises(UnavailableError, match=r"read: cannot read .* \(FileNotFoundError\)"):
        Server(DicomwebConfig(url=url, store="cases.db")).read(Image("1.2", "1.3", "1.4"))


@pytest.mark.slow  # six starts of a process
@needs_orthanc
def test_a_watcher_that_is_killed_stores_every_result_once(
    orthanc: Orthanc, both: Path, pictures: Path, tmp_path: Path
) -> None:
    images = int(os.environ.get("SKINMM_DICOMWEB_IMAGES", "12"))
    for number in range(images):
        orthanc.send(lesion(pictures, number))
    command = watch_command(both, orthanc.port, tmp_path / "cases.db", "watch=0.2")
    reports = 0
    for kill in range(1, 7):
        with subprocess.Popen([sys.executable, "-m", "skinmm", *command], cwd=ROOT) as process:
            target = images * kill // 6
            for _ in range(3000):
                reports = len(orthanc.find("SR")) if images < 50 else count(orthanc)
                if reports >= target:
                    break
                time.sleep(0.05)
            if kill == 6:
                time.sleep(1)
            process.send_signal(signal.SIGKILL)
    check_evidence(orthanc, images)
    assert len(orthanc.find("OT")) == images
    from skinmm.serve.store import Store

    store = Store.open(str(tmp_path / "cases.db"))
    cases = store.find("test", limit=1000)
    store.close()
    assert sorted(case["patient"] for case in cases) == sorted(f"P{n}" for n in range(images))


def count(orthanc: Orthanc) -> int:
    query = {"Level": "Instance", "Query": {"Modality": "SR"}}
    return len(json.loads(orthanc.ask("POST", "/tools/find", json.dumps(query).encode())))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("pacs.example", "must start with https"),
        ("https://me:secret@pacs.example/dicom-web", "no user, password or token there"),
        ("https://pacs.example/dicom-web?token=secret", "no user, password or token there"),
        ("http://pacs.example/dicom-web", "need https"),
    ],
)
def test_an_unsafe_address_is_refused_and_not_repeated(url: str, reason: str) -> None:
    pytest.importorskip("dicomweb_client")
    from skinmm.serve.dicomweb import Server

    with pytest.raises(InputError, match=reason) as refused:
        Server(DicomwebConfig(url=url, store="cases.db"))
    assert "secret" not in str(refused.value)
