"""The page's words and pictures, and uploads that stay until they are replaced."""

import ast
import asyncio
import importlib
import io
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("prometheus_client", exc_type=ImportError)

from dicom_files import dicom_from_jpeg
from served import jpeg_of, service

import skinmm
from skinmm.config.remote_commands import ServeConfig
from skinmm.images.measure import measure_sharpness
from skinmm.predict.cases import NOTICE, Case, CasePredictor
from skinmm.predict.explain import Explainer, Explanation
from skinmm.predict.heat_maps import overlay
from skinmm.predict.loading import CaseImage
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import CaseRecorder
from skinmm.serve.page import MIN_SHARPNESS, Page
from skinmm.serve.rendering import (
    _ENVIRONMENT,
    AUDIENCES,
    ENGLISH,
    Result,
    _escape,
    format_probability,
    render,
    render_result,
)
from skinmm.serve.store import Store

ROOT = Path(__file__).parents[2]


__all__ = ["service"]  # fixtures


def judged(service: CasePredictor, image: bytes, **record: str) -> Result:
    case = Case([CaseImage(image)], record)
    row, reasons = service.predict_and_explain(case)
    assert reasons is not None
    return Result(case, row, reasons, service.card)


def judge(
    service: CasePredictor,
    upload: str | None,
    *cells: Any,
    audience: str = "clinician",
    audiences: Sequence[str] = AUDIENCES,
) -> str:
    """What the button shows."""

    async def press() -> str:
        said, stays = await Page(
            service, RequestQueue(4, 60), CaseRecorder(service, None), audiences
        ).analyse("me", {"": [upload] if upload else []}, audience, *cells)
        assert not stays or upload is None or Path(upload).is_file()
        return said

    return asyncio.run(press())


def uploaded(folder: Path, data: bytes) -> str:
    """A file as Gradio's cache holds it: in a folder of its own."""
    path = folder / "0123abcd" / "lesion.jpg"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("audience", AUDIENCES)
def test_the_result_is_the_service_s(
    service: CasePredictor, pictures: Path, tmp_path: Path, audience: str
) -> None:
    upload = uploaded(tmp_path, jpeg_of(pictures))
    said = judge(service, upload, "55", "", "torso", audience=audience)
    row = service.predict(Case([CaseImage(jpeg_of(pictures))], {"age": "55", "site": "torso"}))
    assert f"{format_probability(row['malignancy'])}</b> probability" in said
    assert "Not provided: sex." in said
    assert said.count("<img") == 2
    assert NOTICE in unescape(said)
    assert ("What moved" in said) == (audience == "clinician")
    assert said == judge(service, upload, "55", "", "torso", audience=audience)


@pytest.mark.parametrize("age", ["old", "fifty", "-3", "200"])
def test_a_number_that_is_none_is_refused_by_name(
    service: CasePredictor, pictures: Path, tmp_path: Path, age: str
) -> None:
    upload = uploaded(tmp_path, jpeg_of(pictures))
    said = unescape(judge(service, upload, age, "", "torso"))
    assert f"age: {age!r} is not a number from 0 to 120; enter a number" in said
    assert "probability" in judge(service, upload, "50,5", "", "torso")


def test_a_model_without_calibration_refers_and_names_no_threshold(
    both: Path, pictures: Path
) -> None:
    service = CasePredictor(
        ServeConfig(accelerator="cpu", uncalibrated=True), [both / "checkpoints" / "last.ckpt"]
    )
    page = render_result(judged(service, jpeg_of(pictures), sex="female"))
    assert "The model was never calibrated, so it makes no decision." in page
    assert "Needs review" in page
    assert "The mark is the threshold" not in page


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0 broken"])
def test_what_cannot_be_used_is_said_and_deleted(
    service: CasePredictor, tmp_path: Path, data: bytes
) -> None:
    said = judge(service, uploaded(tmp_path, data), "", "", "")
    assert 'role="alert"' in said
    assert "cannot be used" in said
    assert [*tmp_path.iterdir()] == []


def test_an_image_that_is_not_there(service: CasePredictor, tmp_path: Path) -> None:
    assert "needs an image" in judge(service, None, "5", "", "")
    gone = judge(service, str(tmp_path / "gone.jpg"), "5", "", "")
    assert "choose it again" in gone


@pytest.mark.parametrize(
    ("share", "words"),
    [(1, "100"), (0.996, "100"), (0.0996, "10"), (0.0934, "9.3"), (0.0, "<0.01")],
)
def test_a_percentage_can_be_read(share: int | float, words: str) -> None:
    assert format_probability(float(share)) == f"{words}\N{NO-BREAK SPACE}%"


def test_nobody_predicts_with_a_network_that_is_being_explained(
    service: CasePredictor, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case([CaseImage(jpeg_of(pictures))], {"age": "50"})
    said: list[Any] = []
    real = Explainer.explain

    def hooked(*given: Any) -> Explanation:
        beside.start()
        beside.join(0.5)
        said.append(beside.is_alive())
        return real(*given)

    beside = Thread(target=lambda: said.append(service.predict(case)))
    monkeypatch.setattr(Explainer, "explain", hooked)
    row, _ = service.predict_and_explain(case)
    beside.join()
    assert said == [True, row]


def test_the_points_add_up(service: CasePredictor, pictures: Path) -> None:
    data = dicom_from_jpeg(jpeg_of(pictures), PatientAge="061Y")
    one = judged(service, data, sex="male")
    said = render_result(one)
    assert '<th scope="row">age</th><td>61</td>' in said
    points = [float(found) for found in re.findall(r"<td>(?:<b>)?([+-]?\d+\.\d)", said)]
    start, *added, together = points
    assert len(added) == 3
    assert start + sum(added) == pytest.approx(together, abs=0.3)


def test_the_wording_for_patients_is_refused_unless_it_is_offered(
    service: CasePredictor, pictures: Path, tmp_path: Path
) -> None:
    upload = uploaded(tmp_path, jpeg_of(pictures))
    said = judge(service, upload, "55", "", "torso", audience="patient", audiences=("clinician",))
    assert "What moved" in said


@pytest.mark.parametrize("audience", AUDIENCES)
def test_no_result_is_an_all_clear(service: CasePredictor, pictures: Path, audience: str) -> None:
    one = judged(service, jpeg_of(pictures), age="50")
    benign = one._replace(row={**one.row, "decision": "benign"})
    said = render_result(benign, audience)
    npv = service.card["members"][0]["test"]["metrics"]["npv"]["value"]
    assert f"<b>{100 - 100 * npv:.0f}</b> were malignant" in said
    assert "Nothing" not in said
    assert "Not suspicious" not in said
    ensemble = {**one.card, "members": one.card["members"] * 2}
    assert "is unknown for this model" in render_result(benign._replace(card=ensemble), audience)


def test_a_probability_has_the_range_of_similar_test_rows(
    service: CasePredictor, pictures: Path
) -> None:
    one = judged(service, jpeg_of(pictures), age="50")
    similar = one.similar
    assert 0 <= similar["low"] <= similar["positives"] / similar["rows"] <= similar["high"] <= 1
    assert f"{similar['positives']} of the {similar['rows']} lesions" in render_result(one)
    (member,) = one.card["members"]
    tested = {name: value for name, value in member["test"].items() if name != "probabilities"}
    old = one._replace(card={**one.card, "members": [{**member, "test": tested}]})
    assert "uncertainty of this number is unknown" in render_result(old)


def test_what_a_patient_sent_is_text(service: CasePredictor, pictures: Path) -> None:
    one = judged(service, jpeg_of(pictures), age="<script>alert(1)</script>")
    said = render_result(one)
    assert "age was not recognised" in said
    assert "<script" not in said


def test_what_speaks_against_a_result_is_said(service: CasePredictor, pictures: Path) -> None:
    one = judged(service, jpeg_of(pictures), age="50")
    strange = one._replace(row={**one.row, "ood": 2.0}, min_side=32)
    assert "Unlike the images used in development" in render_result(strange)
    assert "network's input of 32 pixels" in unescape(render_result(strange))
    unchecked = {**one.card, "members": [{**one.card["members"][0], "calibration": None}]}
    assert "The model was never calibrated, so the" in render_result(one._replace(card=unchecked))
    assert "The model was never calibrated, so the" not in render_result(one)
    for decision, words in (("malignant", "Suspicious"), ("refer", "Needs review")):
        assert words in render_result(one._replace(row={**one.row, "decision": decision}))


def test_sharpness_is_a_known_variance_and_falls_with_blur(pictures: Path) -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2  # each pixel is 255 from its four neighbours
    board = np.repeat((255 * checks).astype(np.uint8)[..., None], 3, axis=2)
    assert measure_sharpness(board) == pytest.approx((4 * 255) ** 2)
    assert measure_sharpness(np.full((9, 300, 3), 80, np.uint8)) == 0
    with Image.open(pictures / "ISIC_0000166.jpg") as opened:
        assert measure_sharpness(np.asarray(opened)) > MIN_SHARPNESS
        assert (
            measure_sharpness(np.asarray(opened.filter(ImageFilter.GaussianBlur(3))))
            < MIN_SHARPNESS
        )


def test_a_blurred_picture_is_said_to_be(
    service: CasePredictor, pictures: Path, tmp_path: Path
) -> None:
    file = io.BytesIO()
    with Image.open(pictures / "ISIC_0000166.jpg") as opened:
        opened.filter(ImageFilter.GaussianBlur(4)).save(file, "jpeg")
    cells = ("", "", "")
    assert "is blurred" in judge(service, uploaded(tmp_path, file.getvalue()), *cells)
    sharp = uploaded(tmp_path, jpeg_of(pictures, "ISIC_0000166"))
    assert "is blurred" not in judge(service, sharp, *cells)


def test_the_map_is_clear_where_nothing_speaks() -> None:
    picture = np.full((40, 60, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(overlay(picture, heat), picture)
    heat[0, 0] = 1
    seen = overlay(picture, heat)
    assert (seen[0, 0] != 100).any()
    assert (seen[-1, -1] == 100).all()


def test_every_part_says_what_it_is_for(service: CasePredictor) -> None:
    learn, about = render("learn.html"), render("model.html", card=service.card)
    assert NOTICE in unescape(learn)
    assert NOTICE in unescape(about)
    assert learn.count("<img") == 6
    assert service.card["members"][0]["sha256"] in about
    for part in (learn, about):
        assert not re.search(r"(src|href)=\"(?!data:)", part)


@pytest.mark.parametrize(("npv", "words"), [(39 / 40, "98 were benign: <b>2</b>"), (0.925, "92 w")])
def test_of_100_lesions_the_rounded_numbers_add_up(npv: float, words: str) -> None:
    parts = '{% import "result_parts.html" as parts with context %}{{ parts.benign_note(test) }}'
    test = {"n": 400, "positives": 40, "metrics": {"npv": {"value": npv}}}
    html = _ENVIRONMENT.from_string(parts).render(test=test, text=_escape(ENGLISH))
    assert words in html
    assert sum(map(int, re.findall(r"(\d+)(?: were benign|</b> were malignant)", html))) == 100


def test_the_space_imports_what_exists() -> None:
    tree = ast.parse((ROOT / "docker" / "space" / "app.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_space_installs_this_version() -> None:
    requirement = (ROOT / "docker" / "space" / "requirements.txt").read_text()
    assert requirement.startswith(f"./skinmm-{skinmm.__version__}-")


def test_a_verdict_on_the_page(service: CasePredictor, pictures: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "cases.db"))
    page = Page(service, RequestQueue(4, 60), CaseRecorder(service, store))
    upload = uploaded(tmp_path, jpeg_of(pictures))
    said, _ = asyncio.run(page.analyse("me", {"": [upload]}, "clinician", "55", "", "torso", "P1"))
    assert "Saved as case <b>1</b>" in said
    assert "Case 1, patient P1: benign. Thank" in page.save_verdict("you", "1", "benign")
    assert "malignant (before: benign)." in page.save_verdict("you", " 1 ", "malignant")
    for number, words in (("", "number of the case"), ("7", "no case 7"), ("1,7", "in digits")):
        assert words in page.save_verdict("you", number, "malignant")
    assert "Choose the diagnosis" in page.save_verdict("you", "1", None)
    (case,) = store.find("me")
    assert (case["patient"], case["verdict"], case["verdict_who"]) == ("P1", "malignant", "you")
    assert case["record"] == {"age": 55.0, "site": "torso"}
    store.close()
