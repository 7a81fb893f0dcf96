"""Similar training images of a checkpoint with an index: in the service, on its page, in tables."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("prometheus_client", exc_type=ImportError)

from quick_runs import best, cohort_of, quick_train
from served import jpeg_of, process
from sklearn.neighbors import NearestNeighbors

from skinmm.cli import main
from skinmm.config.remote_commands import ServeConfig
from skinmm.models.checkpoint import load_card
from skinmm.predict import Predictor
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import CaseRecorder
from skinmm.serve.page import Page

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=["frozen", "trained"])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint contains its training images, with cached features and without."""
    run = tmp_path_factory.mktemp("similar") / "run"
    frozen = ("model.tune=head", "augment=none") if request.param == "frozen" else ()
    assert quick_train(run, "data.limit=24", "model.index=true", *frozen) == 0
    return run


def nearest(run: Path, pictures: Path, name: str) -> pd.DataFrame:
    """The five nearest training rows by scikit-learn, on embeddings of prediction."""
    predictor = Predictor.from_checkpoints([best(run)], "cpu", backend="torch")
    rows = cohort_of(run, "train")
    vectors, query = (
        predictor.embed(table[["image_id"]], pictures).filter(regex=r"^e\d+$").to_numpy()
        for table in (rows, pd.DataFrame({"image_id": [name]}))
    )
    search = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(vectors)
    distances, indices = search.kneighbors(query)
    similar = rows.iloc[indices[0]][["image_id", "diagnosis"]].reset_index(drop=True)
    return similar.assign(similarity=1 - distances[0])


def test_the_service_shows_similar_training_images(indexed: Path, pictures: Path) -> None:
    name = cohort_of(indexed)["image_id"][0]
    expected = nearest(indexed, pictures, name)
    with process(best(indexed), "page=false", "backend=torch") as running:
        files = {"image": jpeg_of(pictures, name)}
        answer = httpx.post(f"{running.address}/v1/explain", files=files, timeout=60).json()
        card = httpx.get(f"{running.address}/v1/model", timeout=60).text
        plain = httpx.post(f"{running.address}/v1/predict", files=files, timeout=60).json()
    similar = pd.DataFrame(answer["similar"])
    np.testing.assert_allclose(similar["similarity"], expected["similarity"], atol=2e-3)
    chosen = set(similar["image_id"])
    assert chosen <= set(cohort_of(indexed, "train")["image_id"])
    assert len(chosen & set(expected["image_id"])) >= 4  # cosines of 16 bits may change the fifth
    truth = cohort_of(indexed, "train").set_index("image_id")["diagnosis"]
    assert similar["diagnosis"].tolist() == truth[similar["image_id"]].tolist()
    assert "similar" not in plain
    assert similar["image_id"][0] not in card


def test_the_page_shows_them_to_clinicians_alone(
    indexed: Path, pictures: Path, tmp_path: Path
) -> None:
    name = cohort_of(indexed, "train")["image_id"][0]
    service = CasePredictor(ServeConfig(accelerator="cpu"), [best(indexed)])
    page = Page(service, RequestQueue(4, 60), CaseRecorder(service, None), ("clinician", "patient"))
    upload = tmp_path / "0123abcd" / "lesion.jpg"
    upload.parent.mkdir()
    upload.write_bytes(jpeg_of(pictures, name))
    texts = [
        asyncio.run(page.analyse("me", {"": [str(upload)]}, audience, "", "", ""))[0]
        for audience in page.audiences
    ]
    assert "Most similar training images" in texts[0]
    assert f'<th scope="row">{name}</th>' in texts[0]  # the image itself
    assert "Most similar" not in texts[1]


def test_the_table_of_explanations_names_them(
    indexed: Path, pictures: Path, tmp_path: Path
) -> None:
    rows = cohort_of(indexed, "train").head(2)
    rows.to_csv(tmp_path / "in.csv", index=False)
    paths = [f"input={tmp_path / 'in.csv'}", f"images={pictures}", f"output={tmp_path / 'o.csv'}"]
    assert main.predict([f"checkpoint={best(indexed)}", *paths, f"explain={tmp_path / 'why'}"]) == 0
    table = pd.read_csv(tmp_path / "why" / "explanations.csv", keep_default_na=False)
    assert [cell.split("|")[0] for cell in table["similar_image_id"]] == rows["image_id"].tolist()
    first = [float(cell.split("|")[0]) for cell in table["similarity"]]
    np.testing.assert_allclose(first, 1, atol=1e-3)
    assert table["similar_diagnosis"].str.count(r"\|").eq(4).all()


def test_without_the_setting_a_checkpoint_has_no_names(both: Path) -> None:
    card, _ = load_card(best(both))
    assert card.index is None
    names = cohort_of(both, "train")["image_id"]
    assert names[0].encode() not in best(both).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("fusion=tabular_only",), "model.index=true: fusion=tabular_only has no image; use false"),
        (("logger=mlflow",), "the checkpoint that logger=mlflow uploads contains names of images"),
        (("logger=wandb",), "set logger.images=true to allow it, or model.index=false"),
    ],
)
def test_an_index_without_use_or_leave_is_refused(
    settings: tuple[str, ...], message: str, tmp_path: Path, capsys: Printed
) -> None:
    assert quick_train(tmp_path / "run", "model.index=true", "data.limit=24", *settings) == 2
    assert message in capsys.readouterr().err
