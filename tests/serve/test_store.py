"""The case store: kept, found, judged, forgotten, on SQLite and PostgreSQL alike."""

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("sqlalchemy", exc_type=ImportError)

from dicom_files import dicom_from_jpeg
from fastapi.testclient import TestClient
from quick_runs import best
from served import RECORD, application, at, client, jpeg_of, place, process, send, service
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from skinmm.cli import main as cli
from skinmm.errors import InputError
from skinmm.predict.cases import Case, CasePredictor
from skinmm.serve.middleware import Keys
from skinmm.serve.outbox import Outbox
from skinmm.serve.store import NewCase, Store, StoreError

__all__ = ["at", "place", "service"]  # fixtures
KEY = "7" * 64
RESULT = {
    "malignancy": 0.25,
    "decision": "benign",
    "threshold": 0.5,
    "ood": None,
    "prediction_set": ["benign"],
    "missing": [],
    "probabilities": {"benign": 0.75, "malignant": 0.25},
}


def change(place: str, sql: str) -> None:
    """As somebody who is let into the database itself."""
    engine = create_engine(place if "://" in place else f"sqlite:///{place}")
    try:
        with engine.begin() as database:
            database.execute(text(sql))
    finally:
        engine.dispose()


@pytest.fixture
def opened(service: CasePredictor, place: str, tmp_path: Path) -> Iterator[TestClient]:
    """The API with a store and a key that has a name."""
    file = tmp_path / "keys.txt"
    file.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()}  dermatology\n")
    app = application(service, store=place, images=True, keys=Keys.read(file))
    with client(app, headers={"X-API-Key": KEY}) as served:
        yield served


def test_a_case_from_its_image_to_its_verdict_and_its_end(
    opened: TestClient, pictures: Path
) -> None:
    image = jpeg_of(pictures)
    _, said = send(opened, image, **RECORD, patient_id="P 7")
    number = said.pop("case")
    case = opened.get(f"/v1/cases/{number}").json()
    assert case["result"] == said
    assert case["record"] == {"age": 55.0, "sex": "female", "site": "torso"}
    assert (case["who"], case["patient"], case["verdict"]) == ("dermatology", "P 7", None)
    assert len(case["model"]) == 64
    assert opened.get(f"/v1/cases/{number}/image").content == image
    path = f"/v1/cases/{number}/verdict"
    judged = opened.put(path, json={"verdict": "malignant"}).json()
    assert (judged["verdict"], judged["verdict_who"]) == ("malignant", "dermatology")
    assert "benign, malignant" in opened.put(path, json={"verdict": "mole"}).json()["detail"]
    assert opened.put("/v1/cases/99/verdict", json={"verdict": None}).status_code == 404
    table = pd.read_csv(io.StringIO(opened.get("/v1/cases.csv").text))
    assert table["p_malignant"][0] == pytest.approx(said["malignancy"], rel=1e-8)
    assert table["target"][0] == "malignant"
    found = opened.get("/v1/cases", params={"patient_id": "P 7"}).json()["cases"]
    assert [each["number"] for each in found] == [number]
    assert opened.delete("/v1/cases", params={"patient_id": "P 7"}).json() == {"deleted": [number]}
    assert opened.get(f"/v1/cases/{number}").status_code == 404
    trail = opened.get("/v1/audit").json()["audit"]
    assert [each["action"] for each in trail if each["action"] != "read"] == [
        *("predict", "read image", "verdict", "export", "delete")
    ]
    assert "P 7" not in json.dumps(trail)
    _, again = send(opened, image)
    assert again["case"] > number
    nameless = f"/v1/cases/{again['case']}"
    assert opened.delete(nameless).json() == {"deleted": [again["case"]]}
    assert (opened.get(nameless).status_code, opened.delete(nameless).status_code) == (404, 404)


def test_a_batch_and_a_header_are_kept(opened: TestClient, pictures: Path) -> None:
    header = dicom_from_jpeg(jpeg_of(pictures), PatientAge="061Y", PatientID="D-1")
    table = "image,age,patient\na.dcm,,\nb.jpg,30,P1\nlost.jpg,,\n"
    files = [("table", ("t.csv", table)), ("images", ("a.dcm", header))]
    files.append(("images", ("b.jpg", jpeg_of(pictures))))
    rows = opened.post("/v1/predict/batch", files=files).json()["rows"]
    assert "case" not in rows[2]
    cases = [opened.get(f"/v1/cases/{row['case']}").json() for row in rows[:2]]
    assert [case["patient"] for case in cases] == ["D-1", "P1"]
    assert [case["record"] for case in cases] == [{"age": 61.0}, {"age": 30.0}]
    _, said = send(opened, header, "/v1/explain")
    assert opened.get(f"/v1/cases/{said['case']}").json()["patient"] == "D-1"


def test_a_patient_is_who_was_named_and_nothing_else(opened: TestClient, pictures: Path) -> None:
    table = "image,patient,lesion\nP7,P7,\nP7,\u0065\u0301 ,L1\nP7,,L1\nP7,=1+1,\n"
    files = [("table", ("t.csv", table)), ("images", ("P7.jpg", jpeg_of(pictures)))]
    rows = opened.post("/v1/predict/batch", files=files).json()["rows"]
    cases = [opened.get(f"/v1/cases/{row['case']}").json() for row in rows]
    assert [case["patient"] for case in cases] == ["P7", "\u00e9", None, "=1+1"]
    kept = opened.get(f"/v1/cases/{rows[0]['case']}/image")
    assert kept.content == jpeg_of(pictures)  # named without its suffix
    exported = pd.read_csv(io.StringIO(opened.get("/v1/cases.csv").text))
    assert exported["patient_id"].fillna("").tolist() == ["P7", "\u00e9", "", "'=1+1"]  # no formula
    assert exported["image_id"].tolist() == [f"case {row['case']}" for row in rows]
    for name, row in (("P7 ", rows[0]), ("e\u0301", rows[1])):
        deleted = opened.delete("/v1/cases", params={"patient_id": name}).json()["deleted"]
        assert deleted == [row["case"]]


@pytest.mark.parametrize("verb", ["UPDATE audit SET who = 'me'", "DELETE FROM audit"])
def test_the_trail_cannot_be_rewritten_by_the_database_s_user(place: str, verb: str) -> None:
    store = Store.open(place)
    store.add("me", "m", [NewCase("p", {}, RESULT)])
    with pytest.raises(DBAPIError, match="append-only"):
        change(place, verb)
    assert [each["action"] for each in store.read_audit()] == ["predict"]
    store.close()


def test_replacing_a_line_of_the_trail_is_refused_in_older_stores_too(tmp_path: Path) -> None:
    place = str(tmp_path / "cases.db")
    Store.open(place).close()
    change(place, "DROP TRIGGER audit_no_replace")
    store = Store.open(place)
    for _ in range(2):
        store.add("me", "m", [NewCase("p", {}, RESULT)])
    with pytest.raises(DBAPIError, match="append-only"):
        change(
            place,
            "INSERT OR REPLACE INTO audit (number, at, who, action, cases) "
            "VALUES (1, '', 'other', '', '[]')",
        )
    assert [each["who"] for each in store.read_audit()] == ["me", "me"]
    store.close()


def test_servers_that_start_together_share_a_store(place: str) -> None:
    def start(_: int) -> None:
        store = Store.open(place)
        store.register("m", {"classes": []})
        store.close()

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(start, range(8))] == [None] * 8
    store = Store.open(place, create=False)
    assert store.models() == {"m": {"classes": []}}
    store.close()


def test_a_case_and_its_trail_are_kept_together_or_not_at_all(place: str) -> None:
    store = Store.open(place)
    change(place, "ALTER TABLE audit RENAME TO trail")
    with pytest.raises(StoreError, match="case store"):
        store.add("me", "m", [NewCase("p", {}, RESULT), NewCase("p", {}, RESULT)])
    change(place, "ALTER TABLE trail RENAME TO audit")
    assert store.find("me") == []
    store.close()


def test_what_was_forgotten_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cases.db"
    store = Store.open(str(path))
    assert path.stat().st_mode & 0o077 == 0
    store.add("me", "m", [NewCase("Erika Mustermann", {"note": "secret"}, RESULT)])
    assert b"Mustermann" in path.read_bytes()
    store.delete("me", patient="Erika Mustermann")
    store.close()
    assert b"Mustermann" not in path.read_bytes()
    assert b"secret" not in path.read_bytes()
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("none/cases.db", "cannot be written"),
        ("mysql://localhost/x", "unsupported database"),
        ("://", "unsupported database"),
        ("postgresql://me:secret@localhost:1/x", "cannot be used"),
        ("postgresql+psycopg2://me:secret@localhost:1/x", "needs psycopg2|cannot be used"),
        ("postgresql+none://me:secret@localhost:1/x", "unsupported database"),
        ("postgresql://me:secret@localhost:port/x", "unsupported database"),
        (__file__, "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_had(wish: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        Store.open(wish)
    assert "secret" not in str(refused.value)


def test_feedback_makes_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "other.db"
    change(str(place), "CREATE TABLE models (name)")
    before = place.read_bytes()
    assert cli.main(["feedback", f"store={place}", f"output={tmp_path / 'out'}"]) == 2
    assert "not a case store" in capsys.readouterr().err
    assert place.read_bytes() == before


def test_a_store_that_does_not_answer_is_said_at_the_terminal(
    tmp_path: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "cases.db")
    Store.open(place).close()
    change(place, "ALTER TABLE models RENAME COLUMN card TO other")
    for command in ("serve", "feedback"):
        given = f"checkpoint={best(both)}"
        assert cli.main([command, f"store={place}", given]) == 2
        assert "the case store does not answer (OperationalError)" in capsys.readouterr().err


def test_without_a_store_nothing_is_said_of_cases(at: TestClient, pictures: Path) -> None:
    assert at.get("/v1/cases").status_code == 404
    status, problem = send(at, jpeg_of(pictures), patient_id="P7")
    assert (status, "unknown field" in problem["detail"]) == (422, True)


def test_names_that_no_database_bears_are_refused(opened: TestClient, pictures: Path) -> None:
    for name in ("a\0b", "x" * 101, "a\nb"):
        assert send(opened, jpeg_of(pictures), patient_id=name)[0] == 422
        assert opened.get("/v1/cases", params={"patient_id": name}).status_code == 422
    for number in ("0", "x", str(2**40)):
        assert opened.get(f"/v1/cases/{number}").status_code == 422
    assert opened.delete("/v1/cases").status_code == 422
    assert opened.put("/v1/cases/1/verdict", content=b"x" * 2000).status_code == 413


def test_a_store_that_is_gone_is_said(opened: TestClient, pictures: Path, place: str) -> None:
    change(place, "ALTER TABLE cases RENAME TO others")
    status, problem = send(opened, jpeg_of(pictures), **RECORD)
    assert (status, "does not answer" in problem["detail"]) == (503, True)
    assert opened.get("/v1/cases").status_code == 503


def test_a_store_has_one_sender(place: str) -> None:
    stores = Store.open(place), Store.open(place)
    first, second = map(Outbox, stores)
    with (
        first.lock(),
        pytest.raises(InputError, match="another process sends the results of this store"),
        second.lock(),
    ):
        pass
    with second.lock():
        pass
    for store in stores:
        store.close()


def test_a_prediction_after_the_time_limit_is_no_case(
    service: CasePredictor, pictures: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user was told to send the lesion again, so it would be stored twice."""
    go, predict = threading.Event(), service.predict

    def predict_late(case: Case) -> dict[str, Any]:
        go.wait(60)
        return predict(case)

    monkeypatch.setattr(service, "predict", predict_late)
    app = application(service, seconds=0.5, store=place)
    with client(app) as opened:
        assert send(opened, jpeg_of(pictures), **RECORD)[0] == 503
        go.set()
        while app.state.queue.taken:
            time.sleep(0.01)
        assert opened.get("/v1/cases").json()["cases"] == []


def test_a_store_that_is_slow_delays_the_answer(
    service: CasePredictor, pictures: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Store.add

    def add_late(*given: Any) -> list[int]:
        time.sleep(3)
        return add(*given)

    monkeypatch.setattr(Store, "add", add_late)
    app = application(service, seconds=2, store=place)
    with client(app) as opened:
        status, row = send(opened, jpeg_of(pictures), **RECORD)
        assert (status, row["case"]) == (200, 1)
        assert len(opened.get("/v1/cases").json()["cases"]) == 1


def test_a_kill_loses_no_case_that_was_acknowledged(both: Path, pictures: Path, place: str) -> None:
    image, numbers, acknowledged = jpeg_of(pictures), count(), []

    def ask(address: str) -> None:
        while True:
            patient = str(next(numbers))
            form: list[Any] = [("image", ("a.jpg", image)), ("patient_id", (None, patient))]
            try:
                answer = httpx.post(f"{address}/v1/predict", files=form, timeout=60)
            except httpx.HTTPError:
                return
            acknowledged.append((answer.json()["case"], patient))
            if len(acknowledged) == 20:
                running.kill()

    options = (f"store={place}", "page=false")
    with process(best(both), *options) as running, ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask, running.address)
    store = Store.open(place)
    kept = {each["number"]: each["patient"] for each in store.find("me", limit=1000)}
    assert len(acknowledged) >= 20
    assert set(acknowledged) <= set(kept.items())
    told = {number for each in store.read_audit(limit=1000) for number in each["cases"]}
    assert kept.keys() <= told
    store.close()


def test_feedback_sets_verdicts_beside_the_test(
    service: CasePredictor, place: str, both: Path, pictures: Path, tmp_path: Path
) -> None:
    names = [f"ISIC_{number:07d}" for number in (0, 1, 2, 3, 4, 6)]
    output = tmp_path / "feedback"
    command = ["feedback", f"store={place}", f"output={output}", "overwrite=true"]
    with client(application(service, store=place)) as opened:
        assert cli.main(command) == 2
        for place_, name in enumerate(names):
            _, said = send(opened, jpeg_of(pictures, name), **RECORD, patient_id=name)
            verdict = {"verdict": ("benign", "malignant")[place_ % 2]}
            if place_ < 5:
                opened.put(f"/v1/cases/{said['case']}/verdict", json=verdict)
    assert cli.main([*command, f"checkpoint={best(both)}"]) == 0
    facts = json.loads((output / "feedback.json").read_text())
    assert (facts["cases"], facts["verdicts"]) == (6, 5)
    table = pd.read_csv(output / "verdicts.csv")
    assert (facts["measured"]["n"], facts["measured"]["positives"]) == (5, 2)
    assert facts["months"][0]["expected"] == pytest.approx(table["malignancy"].sum())
    shifts = {each["column"]: each for each in facts["shifts"]}
    assert shifts.keys() == {"age", "sex", "site", "malignancy", "ood"}
    now = dict(zip(shifts["site"]["labels"], shifts["site"]["now"], strict=True))
    assert now["torso"] == 6
    page = (output / "feedback.html").read_text()
    assert "Performance in use" in page
    assert "Confirmed diagnoses by decision" in page
    (tmp_path / "other.ckpt").write_bytes(b"")
    assert cli.main([*command, f"checkpoint={tmp_path / 'other.ckpt'}"]) == 2
