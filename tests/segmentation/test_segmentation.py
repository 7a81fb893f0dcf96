"""Masks from the command line to a folder, and a classifier whose steps and columns need them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lesion_drawings import LESION, SIDE, SKIN, ellipse, painted, write_cohort
from PIL import Image
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train, train

from skinmm.cli import main as cli
from skinmm.config import Config, DataConfig, from_mapping, read_config
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import decode_image
from skinmm.data.lesion_finder import LesionFinder, add_measurements
from skinmm.images.measure import MEASUREMENTS, measure
from skinmm.images.source import read_source
from skinmm.models.checkpoint import CheckpointError, load_card
from skinmm.predict import Predictor
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.explain import Explainer
from skinmm.predict.inputs import ImageFolder
from skinmm.predict.loading import CaseImage

DRAWN = ("task=segmentation", "data=image_folder")
STEPS = "data.preprocess=[colour,crop_lesion,mask_background]"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    write_cohort(root)
    return root


@pytest.fixture(scope="module", params=["unet", "autoencoder"])
def any_run(request: pytest.FixtureRequest, cohort: Path) -> Path:
    run = cohort.parent / f"{cohort.name}_{request.param}"
    arguments = (f"segmenter={request.param}", f"data.root={cohort}", "trainer.limit_batches=null")
    assert quick_train(run, *DRAWN, *arguments, "trainer.max_epochs=3", "optimizer.lr=0.01") == 0
    return run


@pytest.fixture(scope="module")
def drawing(cohort: Path) -> Path:
    """A checkpoint that draws masks."""
    run = cohort.parent / f"{cohort.name}_short"
    assert quick_train(run, *DRAWN, f"data.root={cohort}") == 0
    return best(run)


def test_masks_are_judged_and_written_alike(any_run: Path, cohort: Path, tmp_path: Path) -> None:
    test = cohort_of(any_run)
    table = tmp_path / "patients.csv"
    test[["image_id"]].to_csv(table, index=False)
    out = tmp_path / "masks"
    job = [f"checkpoint={best(any_run)}", f"input={table}", f"images={cohort / 'nevi'}"]
    assert cli.predict([*job, f"output={out}"]) == 0
    scores = predictions_of(any_run).set_index("image_id")
    assert sorted(file.stem for file in out.iterdir()) == sorted(scores.index)
    for name, row in scores.iterrows():
        drawn = np.asarray(Image.open(out / f"{name}.png"))
        true = np.asarray(Image.open(cohort / "masks" / f"{name}_segmentation.png")) > 0
        assert set(np.unique(drawn)) <= {0, 255}
        both, union = ((drawn > 0) & true).sum(), ((drawn > 0) | true).sum()
        assert row["jaccard"] == pytest.approx(both / union)
        assert row["dice"] == pytest.approx(2 * both / (both + union))
        assert row["area_true"] == pytest.approx(true.mean())
    metrics = metrics_of(any_run)["test"]
    assert metrics["n"] == len(scores)
    for name in ("dice", "jaccard"):
        assert metrics["metrics"][name]["value"] == pytest.approx(scores[name].mean())
    page = (any_run / "report.html").read_text()
    assert f"{scores['dice'].mean():.4f}" in page
    assert "data:image/jpeg" in page


def test_a_mask_has_its_image_s_size_and_rows_fail_alone(drawing: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (120, 70), "brown").save(folder / "wide.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    job = [f"checkpoint={drawing}", f"input={folder}", f"output={tmp_path / 'out'}"]
    assert cli.predict(job) == 3
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["wide.png"]
    with Image.open(tmp_path / "out" / "wide.png") as mask:
        assert mask.size == (120, 70)
    assert cli.predict(job) == 2


def test_names_do_not_lead_out_of_the_folder(drawing: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "brown").save(tmp_path / "I0.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "table.csv").write_text("image\n../I0.png\n")
    job = [f"checkpoint={drawing}", f"input={tmp_path / 'here' / 'table.csv'}"]
    assert cli.predict([*job, f"output={tmp_path / 'here' / 'out'}"]) == 0
    assert (tmp_path / "here" / "out" / "I0.png").is_file()


def test_a_run_goes_on_where_it_stopped(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quick_train(run, *DRAWN, f"data.root={cohort}") == 0
    assert cli.train([f"resume={run}", "trainer.max_epochs=2"]) == 0
    torch.use_deterministic_algorithms(mode=False)
    epochs = pd.read_csv(run / "history.csv").query("name == 'val/dice'")["epoch"]
    assert epochs.tolist() == [0, 1]


@pytest.fixture(scope="module")
def classifier(cohort: Path, drawing: Path) -> Path:
    """A run whose images are cropped and whose records hold what was measured.

    The checkpoint that found the lesions is not there any more.
    """
    run, lent = cohort.parent / f"{cohort.name}_classifier", cohort.parent / "lent.ckpt"
    shutil.copy(drawing, lent)
    columns = "data.columns=[age,sex,asymmetry,skin_tone_angle]"
    assert quick_train(run, "data.limit=48", STEPS, columns, f"data.segmenter={lent}") == 0
    lent.unlink()
    return run


def test_steps_and_measurements_are_those_of_training(classifier: Path, pictures: Path) -> None:
    own, rows = predictions_of(classifier).head(24), cohort_of(classifier).head(24)
    assert rows["asymmetry"].notna().any()
    predictor = Predictor.from_checkpoints([best(classifier)])
    for table in (rows[["image_id", "age", "sex"]], rows.drop(columns=["target"])):
        result = predictor.predict(table, images=pictures)
        assert (result["error"] == "").all()
        assert np.abs(result["p_malignant"] - own["p_malignant"]).max() < 1e-6


class Darkness(LesionFinder):
    """Takes what is dark for the lesion."""

    def __init__(self) -> None:
        """No network."""
        self.digest, self.icc = "dark", DataConfig().icc

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """As large as the picture."""
        del size
        dark: np.ndarray = image[..., 0] < (LESION[0] + SKIN[0]) // 2
        return dark


def test_a_file_that_has_changed_is_measured_again(tmp_path: Path) -> None:
    file, finder = tmp_path / "one.png", Darkness()
    table = pd.DataFrame({"image_id": ["one"], "path": [str(file)]})
    for half_axis in (30, 60):
        mask = ellipse(half_axis, half_axis, (128, 128))
        Image.fromarray(painted(mask)).save(file)
        told = add_measurements(table, ["area_share"], finder, 1)["area_share"].tolist()
        assert told == pytest.approx([mask.mean()])


def test_training_prediction_and_service_see_the_same_tensor(
    classifier: Path, drawing: Path, pictures: Path
) -> None:
    card, _ = load_card(best(classifier))
    config = from_mapping(Config, card.config)
    config.data.segmenter = str(drawing)
    data = LesionData(config, frozenset({"image"}))
    data.setup()
    member = CalibratedModel.load(best(classifier), torch.device("cpu"))
    assert member.view is not None
    row = int(data.rows("test")[0])
    path = ImageFolder(pictures).find(data.cohort["image_id"].iloc[row])
    assert path is not None
    told = Explainer(member).explain([CaseImage(Path(path).read_bytes())], {"age": "50"})
    kept = data.cohort["asymmetry"].iloc[row]
    assert told.record.get("asymmetry") == pytest.approx(None if np.isnan(kept) else kept)
    seen = data.evaluation_loader("test").dataset[0, None]["image"]
    assert torch.equal(
        seen.permute(1, 2, 0), torch.from_numpy(decode_image(read_source(path), member.view))
    )


def test_a_pack_s_steps_are_those_of_prediction(
    drawing: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "packed", tmp_path / "run"
    made = ["data.preprocess=[mask_background]", f"data.segmenter={drawing}"]
    rows = cohort_of(both, "val").groupby("target").head(12)
    rows.drop(columns=["part", "fold"]).to_csv(tmp_path / "cohort.csv", index=False)
    images = Path(rows["path"].iloc[0]).parent
    (tmp_path / "images").symlink_to(images)
    source = ["data=csv", f"data.root={tmp_path}", "size=64", "workers=1"]
    assert cli.main(["pack", *source, *made, f"out={out}"]) == 0
    packed = ["data=packed", f"data.root={out}"]
    assert "needs a checkpoint of task=segmentation" in refused(capsys, run, *packed)
    columns = "data.columns=[age,area_share]"
    assert "measurements need original images" in refused(capsys, run, *packed, made[1], columns)
    assert quick_train(run, *packed, made[1]) == 0
    card, _ = load_card(best(run))
    assert card.preprocess == ["mask_background"]
    own = predictions_of(run)
    seen = Predictor.from_checkpoints([best(run)]).predict(cohort_of(run), images=images)
    # Packed as JPEG, and drawn on pictures of another size: alike, not equal.
    assert np.abs(seen["p_malignant"] - own["p_malignant"]).max() < 0.1


def test_a_finder_measures_what_it_draws(drawing: Path, cohort: Path) -> None:
    finder = LesionFinder.load(drawing)
    path = cohort / "nevi" / "L0.png"
    pixels = np.asarray(Image.open(path))
    found = finder.measure(read_source(str(path)))
    assert tuple(found) == MEASUREMENTS
    assert pixels.shape == (SIDE, SIDE, 3)
    assert found == pytest.approx(measure(pixels, finder(pixels)), nan_ok=True)


def test_a_run_s_restarts_find_lesions_with_one_network(
    classifier: Path, any_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lent = shutil.copy(best(any_run), read_config(classifier / "config.yaml").data.segmenter or "")
    assert train(f"resume={classifier}", "trainer.max_epochs=2") == 2
    assert f"{lent}: the run was started with another checkpoint" in capsys.readouterr().err
    Path(lent).unlink()


def refused(capsys: pytest.CaptureFixture[str], run: Path, *overrides: str) -> str:
    assert quick_train(run, *overrides) == 2
    assert not run.exists()
    return capsys.readouterr().err


def test_what_cannot_be_is_said(
    cohort: Path, both: Path, drawing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = tmp_path / "run", f"data.root={cohort}"
    for overrides, said in (
        ((STEPS,), "'crop_lesion' needs a checkpoint of task=segmentation"),
        ((STEPS, f"data.segmenter={best(both)}"), "a classifier; use a checkpoint"),
        ((STEPS, "data.segmenter=gone.ckpt"), "gone.ckpt: no such checkpoint"),
        ((f"data.segmenter={drawing}",), "no step or column uses the lesion's mask"),
        (("data.columns=[age,asymmetry]",), "'asymmetry' is measured on the image"),
        (("trainer.monitor=val/dice",), "not available for task=classification"),
        (("task=segmentation",), "images have no mask"),
        ((*DRAWN, root, "trainer.monitor=val/auroc"), "use val/dice"),
        ((*DRAWN, root, "model.freeze=true"), "not used by task=segmentation"),
        ((*DRAWN, root, "data.fold=all"), "trains one fold"),
        ((*DRAWN, root, "augment=randaugment"), "cannot augment masks"),
        ((*DRAWN, root, "data.preprocess=[border]"), "do not move pixels"),
        ((*DRAWN, root, "data.masks=nowhere"), "data.masks=nowhere: no such folder"),
        ((*DRAWN, root, "segmenter.args.channels=[8]"), "must be 5 numbers"),
    ):
        assert said in refused(capsys, run, *overrides)
    with pytest.raises(
        CheckpointError, match="checkpoint of task=segmentation; choose one of task=classification"
    ):
        CalibratedModel.load(drawing, torch.device("cpu"))
    job = [f"checkpoint={drawing}", f"input={cohort / 'nevi'}", f"output={tmp_path / 'm.csv'}"]
    assert cli.predict(job) == 2
    assert "name a folder, output=masks" in capsys.readouterr().err


def test_the_card_says_what_was_reached(drawing: Path) -> None:
    card, _ = load_card(drawing)
    assert card.config["task"] == "segmentation"
    assert card.summary == json.loads((drawing.parents[1] / "metrics.json").read_text())["test"]
