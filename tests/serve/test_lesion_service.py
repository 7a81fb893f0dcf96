"""The service with a checkpoint of several images per lesion: API, batch, page and case store."""

import asyncio
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from fastapi.testclient import TestClient
from lesion_cohorts import lesion_table, write_lesions
from quick_runs import best, quick_train
from served import application, client

from skinmm.config.remote_commands import ServeConfig
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import CaseRecorder
from skinmm.serve.page import Page


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_lesions(folder, lesion_table(75))
    return folder


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> CasePredictor:
    run = tmp_path_factory.mktemp("runs") / "run"
    data = ("data=csv", f"data.root={root}", "data.unit=lesion", "data.columns=[age,sex]")
    more = ("views=gated", "data.views=3", "trainer.workers=0", "model.drop_image=0.1")
    assert quick_train(run, *data, *more) == 0
    return CasePredictor(ServeConfig(accelerator="cpu"), [best(run)])


@pytest.fixture
def at(service: CasePredictor, tmp_path: Path) -> Iterator[TestClient]:
    store = str(tmp_path / "cases.db")
    with client(application(service, store=store, images=True)) as opened:
        yield opened


def pictures(root: Path, count: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted((root / "images").iterdir())[:count]]


def send(at: TestClient, path: str, files: list[bytes], *views: str, **fields: str) -> Any:
    parts: list[tuple[str, Any]] = [("image", ("a.jpg", data)) for data in files]
    parts += [("view", (None, view)) for view in views]
    parts += [(name, (None, cell)) for name, cell in fields.items()]
    return at.post(path, files=parts)


def test_a_lesion_of_several_images(at: TestClient, root: Path) -> None:
    files = pictures(root, 2)
    row = send(at, "/v1/predict", files, "dermoscopic", "close-up", age="50", sex="male").json()
    assert row["missing"] == []
    turned = send(at, "/v1/predict", files[::-1], "clinical", "dscope", age="50", sex="male")
    assert turned.json()["malignancy"] == pytest.approx(row["malignancy"], abs=1e-6)
    other = send(at, "/v1/predict", files, "clinical", "dermoscopic", age="50", sex="male").json()
    assert other["malignancy"] != pytest.approx(row["malignancy"], abs=1e-6)
    table = "image,lesion_id,view,age,sex\na.jpg,L,dermoscopic,50,male\nb.jpg,L,clinical,,male\n"
    table += "a.jpg,M,,oops,\n"
    parts = [
        ("table", ("t.csv", table)),
        *[("images", (f"{n}.jpg", d)) for n, d in zip("ab", files, strict=True)],
    ]
    batch = at.post("/v1/predict/batch", files=parts).json()
    assert [one["lesion_id"] for one in batch["rows"]] == ["L", "M"]
    assert [one["images"] for one in batch["rows"]] == ["a.jpg|b.jpg", "a.jpg"]
    assert batch["rows"][0]["malignancy"] == pytest.approx(row["malignancy"], abs=1e-6)
    assert batch["rows"][1]["unknown"] == ["age"]


def test_the_explanation_of_each_image(at: TestClient, root: Path) -> None:
    body = send(at, "/v1/explain", pictures(root, 3), "", "clinical", "", age="50").json()
    assert body["views"] == {"image 1": None, "image 2": "clinical", "image 3": None}
    assert {*body["heat_maps_png"]} == {*body["views"]}
    assert {*body["added"]} == {*body["views"], "age"}
    total = body["start"] + sum(body["added"].values())
    assert total == pytest.approx(body["malignancy"], abs=1e-6)
    assert body["heat_map_png"] is None


def test_a_lesion_without_an_image_and_one_with_a_damaged_image(at: TestClient, root: Path) -> None:
    row = send(at, "/v1/predict", [], age="50").json()
    assert row["missing"] == ["image", "sex"]
    (good,) = pictures(root, 1)
    parts = [("table", ("t.csv", "image,lesion_id\na.jpg,L\nb.jpg,L\n"))]
    files = [("images", ("a.jpg", good)), ("images", ("b.jpg", b"no image"))]
    (row,) = at.post("/v1/predict/batch", files=[*parts, *files]).json()["rows"]
    assert row["missing"] == ["age", "sex", "image b.jpg"]
    assert row["error"] == ""


@pytest.mark.parametrize(
    ("count", "views", "message"),
    [
        (2, ("clinical",), "view: 1 values for 2 images; send one for each image, empty if not st"),
        (1, ("radiograph",), "view: 'radiograph' is not a view; allowed: dermoscopic, clinical, o"),
        (4, (), "the form has more than 3 files; send fewer"),
    ],
)
def test_bad_forms_are_named(
    at: TestClient, root: Path, count: int, views: tuple[str, ...], message: str
) -> None:
    answer = send(at, "/v1/predict", pictures(root, count), *views)
    assert answer.status_code in (400, 422)
    assert message in answer.json()["detail"]


def test_stored_images_of_a_lesion_are_an_archive(at: TestClient, root: Path) -> None:
    files = pictures(root, 2)
    number = send(at, "/v1/predict", files, "", "clinical").json()["case"]
    with ZipFile(BytesIO(at.get(f"/v1/cases/{number}/image").content)) as archive:
        names = archive.namelist()
        assert names == ["1 image", "2 clinical"]
        assert [archive.read(name) for name in names] == files
    single = send(at, "/v1/predict", files[:1]).json()["case"]
    assert at.get(f"/v1/cases/{single}/image").content == files[0]


def test_the_page_shows_each_image_and_its_heat_map(
    service: CasePredictor, root: Path, tmp_path: Path
) -> None:
    page = Page(service, RequestQueue(4, 60), CaseRecorder(service, None))
    paths = []
    for number, data in enumerate(pictures(root, 4)):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        paths.append(str(path))
    uploads = {"": paths[:1], "clinical": paths[1:3]}
    html, stays = asyncio.run(page.analyse("me", uploads, "clinician", "50", ""))
    assert stays
    assert html.count("<img") == 6
    for words in ("Original image 1.", "image 2 (clinical)", "The images account for"):
        assert words in html
    more = {"": paths}
    html, stays = asyncio.run(page.analyse("me", more, "clinician", "50", ""))
    assert "There are 4 images, and this model takes 3: remove some." in html
