"""Cases as FHIR: validated by the models of the standard, read back, sent to a real server."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("fhir.resources")
pytest.importorskip("sqlalchemy")

from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle

from skinmm.cli import main
from skinmm.serve.fhir import build_bundle
from skinmm.serve.outbox import READY, SENT, Outbox
from skinmm.serve.store import NewCase, Store

Said = pytest.CaptureFixture[str]
CARD = {
    "skinmm": "1.2.3",
    "classes": ["mel", "nv", "akiec"],
    "positive": ["mel"],
    "threshold": 0.4,
    "members": [{"model": "tiny", "trained_on": "demo"}],
}
RESULT = {
    "malignancy": 0.25,
    "decision": "refer",
    "threshold": 0.4,
    "missing": ["age"],
    "probabilities": {"mel": 0.25, "nv": 0.7, "akiec": 0.05},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two cases of a patient, the first from an archive, and one of nobody."""
    path = tmp_path / "cases.db"
    store = Store.open(str(path))
    store.register("m", CARD)
    outbox = Outbox(store)
    outbox.add("me", "m", NewCase("P1", {}, RESULT), ("1.2.4", "1.2.3"), [b"DICM"])
    store.add("me", "m", [NewCase("P1", {}, RESULT), NewCase(None, {}, RESULT)])
    store.set_verdict("me", 1, "mel")
    assert outbox.list_ready() == ["1.2.4"]
    assert outbox.read_objects("1.2.4") == [b"DICM"]
    assert outbox.count()[READY] == 1
    outbox.set_state("1.2.4", SENT)
    assert outbox.read_objects("1.2.4") == []
    store.close()
    return path


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [each for each in found if each["resourceType"] == kind]


def test_a_store_is_written_as_valid_resources(place: Path, tmp_path: Path, capsys: Said) -> None:
    output = tmp_path / "cases.ndjson"
    assert main.main(["fhir", f"store={place}", f"output={output}"]) == 0
    assert capsys.readouterr().out == f"cases: 3 in {output}, the last has the number 3\n"
    (bundle,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert json.loads(Bundle.model_validate(bundle).model_dump_json()) == bundle
    for entry in bundle["entry"]:
        kind = entry["resource"]["resourceType"]
        model = get_fhir_model_class(kind).model_validate(entry["resource"])
        assert json.loads(model.model_dump_json()) == entry["resource"]
    counts = {kind: len(resources(bundle, kind)) for kind in ("Patient", "Device", "Media")}
    assert counts == {"Patient": 1, "Device": 1, "Media": 1}
    first, second, third = resources(bundle, "DiagnosticReport")
    assert (first["status"], second["status"]) == ("final", "preliminary")
    assert first["conclusionCode"][0]["coding"][0]["code"] == "93655004"
    assert "Decision: refer. Probability of malignancy: 25.0%" in first["conclusion"]
    assert "Predicted without: age." in first["conclusion"]
    assert third["subject"] == {"display": "case 3"}
    addresses = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    study = addresses[first["imagingStudy"][0]["reference"]]
    assert study["identifier"] == [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}]
    media = addresses[first["media"][0]["link"]["reference"]]
    assert media["identifier"][0]["value"] == "urn:oid:1.2.4"
    risk = resources(bundle, "RiskAssessment")[0]
    chances = {each["outcome"]["text"]: each["probabilityDecimal"] for each in risk["prediction"]}
    result: Any = RESULT
    expected = {"malignant lesion of the skin": result["malignancy"], **result["probabilities"]}
    assert chances == pytest.approx({name: 100 * value for name, value in expected.items()})
    coded = {each["outcome"]["text"] for each in risk["prediction"] if "coding" in each["outcome"]}
    assert coded == {"mel", "nv"}  # akiec combines two diagnoses
    assert addresses[risk["performer"]["reference"]]["version"] == [{"value": "1.2.3"}]
    assert main.main(["fhir", f"store={place}", f"output={output}"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert (
        main.main(["fhir", f"store={place}", f"output={output}", "after=2", "overwrite=true"]) == 0
    )
    assert len(resources(json.loads(output.read_text()), "RiskAssessment")) == 1


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        bundle = json.loads(body)
        server.received.append((self.headers.get("Authorization"), bundle))
        entries = [{"response": {"status": server.entry}}] * (
            len(bundle["entry"]) - (server.lost or 0)
        )
        answer = {"resourceType": "Bundle", "type": server.kind, "entry": entries}
        data = json.dumps(answer).encode() if server.lost is not None else b"<html>Log in</html>"
        self.send_response(server.status)
        if server.status == 301:
            self.send_header("Location", "/fhir/")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), _Handler)
    server.received, server.status, server.lost = [], 200, 0
    server.entry, server.kind = "201 Created", "transaction-response"
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_transaction_creates_each_resource_once(
    place: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SKINMM_FHIR_TOKEN", "secret")
    command = ["fhir", f"store={place}", f"url=http://127.0.0.1:{server.server_port}/fhir"]
    assert main.main(command) == 0
    assert main.main(command) == 0
    (token, first), (_, second) = server.received
    assert (token, first) == ("Bearer secret", second)
    requests = [entry["request"] for entry in first["entry"]]
    assert len({each["ifNoneExist"] for each in requests}) == len(requests)
    server.status = 422
    assert main.main(command) == 2
    told = capsys.readouterr()
    assert "the server refuses the cases: HTTP 422" in told.err
    assert "secret" not in told.err + told.out


@pytest.mark.parametrize(
    ("status", "lost", "answer", "reason"),
    [
        (301, 0, ("201", "transaction-response"), "the server redirects; set url to the final"),
        (200, 1, ("201", "transaction-response"), "does not confirm that it stored the cases"),
        (200, None, ("201", "transaction-response"), "does not confirm that it stored the cases"),
        (200, 0, ("400", "transaction-response"), "does not confirm that it stored the cases"),
        (201, 0, ("201", "transaction"), "does not confirm that it stored the cases"),
    ],
)
def test_an_answer_that_confirms_nothing_is_no_success(
    status: int,
    lost: int | None,
    answer: tuple[str, str],
    reason: str,
    place: Path,
    server: Any,
    capsys: Said,
) -> None:
    server.status, server.lost = status, lost
    server.entry, server.kind = answer
    command = ["fhir", f"store={place}", f"url=http://127.0.0.1:{server.server_port}/fhir"]
    assert main.main(command) == 2
    told = capsys.readouterr()
    assert reason in told.err
    assert "sent" not in told.out
    assert len(server.received) == 1  # the redirect is not followed


def test_a_patient_is_searched_by_the_whole_identifier() -> None:
    case = {"number": 1, "model": "m", "at": "2026-11-01T00:00:00.000+00:00", "verdict": None}
    bundle = build_bundle([case | {"patient": "A&B,C|D", "result": RESULT}], {}, {})
    (patient,) = (each for each in bundle["entry"] if each["request"]["url"] == "Patient")
    search = "identifier=urn:skinmm:patient|A%26B%5C%2CC%5C%7CD"
    assert patient["request"]["ifNoneExist"] == search


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "give output=FILE or url=SERVER"),
        (["url=http://fhir.example/r4"], "need https"),
        (["url=https://me:secret@fhir.example/r4"], "without user and token"),
    ],
)
def test_an_unsafe_target_is_refused(
    given: list[str], reason: str, place: Path, capsys: Said
) -> None:
    assert main.main(["fhir", f"store={place}", *given]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "secret" not in told
