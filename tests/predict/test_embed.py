"""Embeddings out of a network, and the most similar rows of a file of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from quick_runs import best, cohort_of
from sklearn.neighbors import NearestNeighbors

from skinmm.cli import main
from skinmm.data.dataset import load_image
from skinmm.errors import InputError
from skinmm.predict import Predictor, embed
from skinmm.predict.embedder import Embedder, EmbeddingIndex
from skinmm.predict.ensemble import load_models
from skinmm.predict.predictor import select_device

Printed = pytest.CaptureFixture[str]
DEMO = Path(embed.__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows of the included cohort, and one whose image does not exist."""
    rows = pd.read_csv(DEMO / "cohort.csv", dtype=str).head(10)
    rows["diagnosis"] = [f"diagnosis {row}" for row in range(10)]
    path = tmp_path_factory.mktemp("embed") / "table.csv"
    pd.concat([rows, pd.DataFrame({"image_id": ["lost"]})]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def file(both: Path, table: Path) -> Path:
    """Their embeddings by a run's image network."""
    path = table.with_name("embeddings.parquet")
    assert run("embed", both, f"input={table}", f"output={path}") == 3
    return path


def run(command: str, checkpoint: Path, *settings: str) -> int:
    images = f"images={DEMO / 'images'}"
    return main.main([command, f"checkpoint={best(checkpoint)}", images, "workers=0", *settings])


def test_a_row_is_the_image_network_s_output(file: Path, both: Path, table: Path) -> None:
    stored = parquet.ParquetFile(file)
    rows = stored.read().to_pandas()
    assert rows["image_id"].tolist() == pd.read_csv(table)["image_id"].tolist()
    assert rows["diagnosis"].tolist()[:2] == ["diagnosis 0", "diagnosis 1"]
    assert "not found" in rows["error"].iloc[-1]
    vectors = rows.filter(regex=r"^e\d+$")
    assert {str(kind) for kind in vectors.dtypes} == {"float32"}
    assert vectors.iloc[-1].isna().all()
    member = Predictor.from_checkpoints([best(both)], "cpu", backend="torch").ensemble.members[0]
    assert member.view is not None
    network: Any = member.backend.network  # type: ignore[union-attr]
    pixels = [
        load_image(str(DEMO / "images" / f"{n}.jpg"), member.view) for n in rows["image_id"][:10]
    ]
    with torch.inference_mode():
        expected = network.encode_image(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(vectors.iloc[:10], expected.numpy(), rtol=1e-4, atol=1e-5)
    metadata = json.loads(stored.schema_arrow.metadata[b"skinmm"])
    assert (metadata["model"], metadata["image_size"]) == ("test_efficientnet", 32)
    assert (metadata["icc"], metadata["preprocess"]) == ("ignore", [])


def test_the_predictor_embeds_alike(file: Path, both: Path, table: Path) -> None:
    predictor = Predictor.from_checkpoints([best(both)], "cpu", backend="torch")
    rows = predictor.embed(pd.read_csv(table), DEMO / "images")
    stored = pd.read_parquet(file)
    pd.testing.assert_frame_equal(
        rows.filter(regex=r"^e\d"), stored.filter(regex=r"^e\d"), rtol=1e-4, atol=1e-5
    )


def test_columns_with_the_names_of_training_are_copied(both: Path) -> None:
    (model,) = load_models(best(both), select_device("cpu"))
    model.config.data.name, model.config.data.args = "csv", {"columns": {"diagnosis": "Befund"}}
    embedder = Embedder.from_model([model], ["diagnosis", "target"])
    table = pd.DataFrame({"image": ["ISIC_0000166"], "Befund": ["naevus"]})
    (rows,) = embedder.embed([table], DEMO / "images", workers=0)
    assert rows[["diagnosis", "target"]].to_numpy().tolist() == [["naevus", None]]


def test_background_rows_are_features_of_evaluation(both: Path) -> None:
    predictor = Predictor.from_checkpoints([best(both)], "cpu", backend="torch")
    rows = predictor.embed(cohort_of(both, "val")[["image_id"]], DEMO / "images")
    features = rows.filter(regex=r"^e\d").to_numpy()
    stored = predictor.ensemble.members[0].card.background["image"].float().numpy()
    distances = np.abs(stored[:, None] - features[None]).max(axis=2).min(axis=1)
    assert distances.max() < 0.01 * np.abs(features).max()  # bfloat16


def test_a_long_table_has_several_row_groups(
    file: Path, both: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "GROUP", 4)
    monkeypatch.setattr(embed, "CHUNK", 4)
    path = tmp_path / "groups.parquet"
    assert run("embed", both, f"input={table}", f"output={path}", "batch_size=2") == 3
    assert parquet.ParquetFile(path).num_row_groups == 3
    pd.testing.assert_frame_equal(
        pd.read_parquet(path), pd.read_parquet(file), rtol=1e-4, atol=1e-5
    )
    assert len(EmbeddingIndex.read(path).vectors) == 10


def test_a_pretrained_network_needs_no_checkpoint(table: Path, tmp_path: Path) -> None:
    settings = [f"input={table}", f"images={DEMO / 'images'}", f"output={tmp_path / 'a.parquet'}"]
    model = ["model.name=test_efficientnet", "model.pretrained=false", "model.image_size=48"]
    assert main.main(["embed", *settings, *model, "columns=[age]", "workers=0"]) == 3
    rows = pd.read_parquet(tmp_path / "a.parquet")
    assert rows["age"].iloc[0] == "55.0"
    assert "diagnosis" not in rows
    assert (
        json.loads(parquet.read_schema(tmp_path / "a.parquet").metadata[b"skinmm"])["image_size"]
        == 48
    )


def test_the_search_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 24)).astype(np.float32) for n in (500, 40))
    exact = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(vectors)
    distances, rows = exact.kneighbors(queries)
    index = EmbeddingIndex(vectors.copy(), pd.DataFrame(index=range(500)), {})
    similar, cosines = index.search(queries, 7)
    np.testing.assert_array_equal(similar, rows)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.01])  # 16 bits distinguish the rows, or do not
def test_the_search_for_one_query_is_exact(spread: float) -> None:
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(48, dtype=np.float32) * (spread < 1)
    vectors, queries = (
        centre + spread * rng.standard_normal((n, 48), dtype=np.float32) for n in (3000, 20)
    )
    index = EmbeddingIndex(vectors.copy(), pd.DataFrame(), {})
    found = [index.search(queries[[row]], 7) for row in range(20)]
    rows, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    search = NearestNeighbors(n_neighbors=7, algorithm="brute", metric="cosine")
    distances, expected = search.fit(vectors.astype("f8")).kneighbors(queries.astype("f8"))
    assert np.allclose(cosines, 1 - distances, atol=1e-6)
    assert (rows == expected).mean() > 0.9  # others are equal in 32 bits
    assert (index.search(queries, 7)[0] == rows).mean() > 0.9


def test_similar_images_come_with_their_diagnoses(file: Path, both: Path, tmp_path: Path) -> None:
    output, image = tmp_path / "similar.csv", DEMO / "images" / "ISIC_0000001.jpg"
    assert (
        run("similar", both, f"index={file}", f"input={image}", f"output={output}", "count=3") == 0
    )
    rows = pd.read_csv(output)
    stored = pd.read_parquet(file).set_index("image_id")
    assert rows["rank"].tolist() == [1, 2, 3]
    assert rows["similar_image_id"][0] == "ISIC_0000001"
    assert rows["similarity"][0] == pytest.approx(1, abs=1e-5)
    expected = stored.loc[rows["similar_image_id"], "diagnosis"]
    assert rows["similar_diagnosis"].tolist() == expected.tolist()


def test_a_table_has_a_line_for_each_pair_and_error(
    file: Path, both: Path, table: Path, tmp_path: Path
) -> None:
    output = tmp_path / "similar.csv"
    assert (
        run("similar", both, f"index={file}", f"input={table}", f"output={output}", "count=2") == 3
    )
    rows = pd.read_csv(output)
    assert len(rows) == 21
    assert rows["image_id"].iloc[-1] == "lost"
    assert "not found" in rows["error"].iloc[-1]
    first = rows[rows["rank"] == 1]
    assert (first["image_id"] == first["similar_image_id"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "name one network"),
        (("checkpoint=a.ckpt", "model.name=resnet18"), "name one network"),
        (("checkpoint={records}",), "no image network"),
        (("checkpoint=[{both},{larger}]",), "embeddings of 2 networks cannot be compared"),
        (("checkpoint={both}", "output=a.csv"), "embeddings are written as .parquet"),
        (("checkpoint={both}", "columns=[sexx]"), "has no such column; did you mean sex?"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(
    settings: tuple[str, ...],
    message: str,
    table: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name in ("both", "larger", "records") if f"{{{name}}}" in "".join(settings)]
    runs = {name: request.getfixturevalue(name) for name in names}
    given = [item.format(**runs) for item in settings]
    assert main.main(["embed", f"input={table}", f"images={DEMO / 'images'}", *given]) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_another_network_or_file_is_refused(
    file: Path, larger: Path, table: Path, tmp_path: Path, capsys: Printed
) -> None:
    output = f"output={tmp_path / 'similar.csv'}"
    picture = tmp_path / "none.jpg"
    assert run("similar", larger, f"index={file}", f"input={picture}", output) == 2
    assert f"input={picture}: no such file" in capsys.readouterr().err
    assert run("similar", larger, f"index={file}", f"input={table}", output) == 2
    assert "embeddings of the index and of the images differ: network" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such file; write it with skinmm embed"):
        EmbeddingIndex.read(tmp_path / "absent.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="not written by skinmm embed"):
        EmbeddingIndex.read(tmp_path / "other.parquet")
