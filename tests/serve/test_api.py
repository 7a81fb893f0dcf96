"""The API says what `predict.py` says, and keeps nothing."""

import csv
import io
from base64 import b64decode
from itertools import chain
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("prometheus_client", exc_type=ImportError)

from dicom_files import dicom_from_jpeg
from fastapi.testclient import TestClient
from quick_runs import best
from served import RECORD, application, at, client, jpeg_of, send, service

from skinmm.cli import main
from skinmm.config.remote_commands import ServeConfig
from skinmm.predict.cases import NOTICE, CasePredictor

__all__ = ["at", "service"]  # fixtures


def predicted(checkpoint: Any, folder: Path, rows: list[dict[str, str]]) -> pd.DataFrame:
    """What `predict.py` writes."""
    table, output = folder / "patients.csv", folder / "out.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    status = main.predict(
        [f"checkpoint={checkpoint}", f"input={table}", f"output={output}", "overwrite=true"]
    )
    assert status == 0
    return pd.read_csv(output, keep_default_na=False)


@pytest.mark.parametrize("kind", ["jpg", "dcm"])
def test_it_says_what_predict_py_says(
    kind: str, at: TestClient, both: Path, pictures: Path, tmp_path: Path
) -> None:
    data = jpeg_of(pictures)
    if kind == "dcm":
        data = dicom_from_jpeg(data, PatientAge="061Y", PatientSex="M", BodyPartExamined="TORSO")
    (tmp_path / f"a.{kind}").write_bytes(data)
    for record in (RECORD, {"age": "", "sex": "F"}, {"site": "unknown"}):
        status, said = send(at, data, **record)
        assert status == 200
        row = predicted(best(both), tmp_path, [{"image": f"a.{kind}", **record}]).iloc[0]
        for name in ("benign", "malignant"):
            assert said["probabilities"][name] == pytest.approx(row[f"p_{name}"], abs=1e-6)
        for name in ("malignancy", "threshold", "ood"):
            assert said[name] == pytest.approx(float(row[name]), abs=1e-6, rel=1e-6)
        assert said["decision"] == row["decision"]
        assert "|".join(said["prediction_set"]) == row["prediction_set"]
        assert "|".join(said["missing"]) == row["missing"]
        assert said["unknown"] == []
        assert said["notice"] == NOTICE


def test_a_batch_is_the_table(at: TestClient, both: Path, pictures: Path, tmp_path: Path) -> None:
    names = ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
    rows = [{"image": name, **RECORD} for name in names]
    for name in names:
        (tmp_path / f"{name}.jpg").write_bytes(jpeg_of(pictures, name))
    expected = predicted(best(both), tmp_path, rows)
    rows.append({"image": "lost.jpg", **RECORD, "site": "nowhere"})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    files = [("table", ("t.csv", text.getvalue()))]
    files += [("images", (f"{name}.jpg", jpeg_of(pictures, name))) for name in names]  # type: ignore[misc]
    answer = at.post("/v1/predict/batch", files=files)
    assert answer.status_code == 200
    said = answer.json()["rows"]
    assert [row["image_id"] for row in said] == [*names, "lost.jpg"]
    found = [row["malignancy"] for row in said[:3]]
    np.testing.assert_allclose(found, expected["malignancy"].astype(float), atol=1e-6)
    assert said[3]["error"] == "image lost.jpg not found"
    assert [row["unknown"] for row in said] == [[], [], [], ["site"]]
    assert said[3]["malignancy"] is said[3]["probabilities"] is None
    assert answer.json()["notes"] == []
    table = "image,Age,SEX,site,fold\nISIC_0000000,old,f,torso,1\n"
    files[0] = ("table", ("t.csv", table))
    again = at.post("/v1/predict/batch", files=files).json()
    note = "no column patient_id or lesion_id; columns not used: fold (looks like a split)"
    assert again["notes"] == [note]
    assert again["rows"][0]["unknown"] == ["age"]


def test_an_explanation_adds_up_to_the_prediction(at: TestClient, pictures: Path) -> None:
    _, plain = send(at, jpeg_of(pictures), **RECORD)
    status, said = send(at, jpeg_of(pictures), "/v1/explain", **RECORD)
    assert status == 200
    assert {name: said[name] for name in plain} == plain
    total = said["start"] + sum(said["added"].values())
    assert total == pytest.approx(plain["malignancy"], abs=1e-6)
    assert said["added"].keys() == {"age", "sex", "site", "image"}
    assert said["record"] == {"age": 55.0, "sex": "female", "site": "torso"}
    assert 0 <= said["share_of_image"] <= 1
    heat = np.asarray(Image.open(io.BytesIO(b64decode(said["heat_map_png"]))))
    assert heat.ndim == 2


def test_a_header_s_record_is_explained_as_it_is_predicted(at: TestClient, pictures: Path) -> None:
    data = dicom_from_jpeg(jpeg_of(pictures), PatientAge="061Y", PatientSex="M")
    _, said = send(at, data, "/v1/explain")
    assert said["record"] == {"age": 61.0, "sex": "male"}
    assert said["missing"] == ["site"]
    total = said["start"] + sum(said["added"].values())
    assert total == pytest.approx(said["malignancy"], abs=1e-6)


def test_several_checkpoints_are_one_service(
    both: Path, larger: Path, records: Path, pictures: Path, tmp_path: Path
) -> None:
    paths = [best(run) for run in (both, larger, records)]
    (tmp_path / "a.jpg").write_bytes(jpeg_of(pictures))
    row = predicted(f"[{','.join(map(str, paths))}]", tmp_path, [{"image": "a.jpg", **RECORD}])
    with client(application(CasePredictor(ServeConfig(accelerator="cpu"), paths))) as opened:
        _, said = send(opened, jpeg_of(pictures), "/v1/explain", **RECORD)
        assert len(opened.get("/v1/model").json()["members"]) == 3
    assert said["malignancy"] == pytest.approx(float(row["malignancy"][0]), abs=1e-6)
    total = said["start"] + sum(said["added"].values())
    assert total == pytest.approx(said["malignancy"], abs=1e-6)


def test_a_model_of_the_record_alone_takes_no_image(records: Path) -> None:
    with client(
        application(CasePredictor(ServeConfig(accelerator="cpu"), [best(records)]))
    ) as opened:
        status, said = send(opened, None, "/v1/explain", **RECORD)
    assert status == 200
    assert said["heat_map_png"] is None
    assert said["share_of_image"] == 0


def test_the_card_tells_what_is_served(at: TestClient, service: CasePredictor) -> None:
    card = at.get("/v1/model").json()
    assert card["intended_use"] == NOTICE
    assert card["threshold"] == service.predictor.threshold
    (member,) = card["members"]
    assert len(member["sha256"]) == 64
    assert member["trained_on"] == "demo"
    assert "auroc" in member["test"]["metrics"]


def test_the_description_names_every_path(at: TestClient) -> None:
    paths = at.get("/v1/openapi.json").json()["paths"]
    assert {*paths} == {
        *("/v1/predict", "/v1/predict/batch", "/v1/explain", "/v1/model"),
        *("/healthz", "/readyz", "/metrics"),
    }
    body = paths["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {*body["properties"]} == {"image", "age", "sex", "site", "frame"}
    assert body["required"] == ["image"]


def test_health_and_counts(at: TestClient, pictures: Path) -> None:
    assert at.get("/healthz").json() == {"status": "alive"}
    assert at.get("/readyz").json() == {"status": "ready"}
    at.get("/no/such/patient")
    _, said = send(at, jpeg_of(pictures), **RECORD)
    text = at.get("/metrics").text
    assert 'skinmm_requests_total{path="/v1/predict",status="200"}' in text
    assert f'skinmm_decisions_total{{decision="{said["decision"]}"}}' in text
    assert "skinmm_places_taken 0.0" in text
    assert "no/such" not in text


def test_nothing_is_kept_or_logged(
    at: TestClient,
    pictures: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("httpx", "httpx2"):
        caplog.set_level("WARNING", logger=name)  # the test's own
    folders = (Path("/dev/shm"), Path(gettempdir()))  # noqa: S108
    before = [*chain(*(folder.glob("skinmm-*") for folder in folders))]
    send(at, jpeg_of(pictures), "/v1/explain", age="57", sex="male", site="torso")
    send(at, b"\xff\xd8\xff broken", age="57")
    assert [*chain(*(folder.glob("skinmm-*") for folder in folders))] == before
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_a_page_of_another_site_can_send_nothing(at: TestClient) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = at.post("/v1/predict", data={"age": "50"}, headers=headers)
        assert answer.status_code == 403
        assert at.get("/v1/model", headers=headers).status_code == 200
    same = {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}
    for own in (same, {"Origin": "http://derma.local", "Host": "derma.local:80"}):
        assert at.post("/v1/predict", data={"age": "50"}, headers=own).status_code != 403
