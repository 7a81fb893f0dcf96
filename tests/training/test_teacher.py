"""Distillation: its loss, the shift of the teacher's probabilities, and refused teachers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_classifier, micro_config, read_data
from torch.nn import functional

from skinmm.config import LossConfig
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS
from skinmm.training.leak_guard import list_teacher_leaks
from skinmm.training.losses import distillation_loss
from skinmm.training.teacher import load_teacher, soften


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_at_temperature_1_and_certain_targets_it_is_the_cross_entropy() -> None:
    logits, target = random_logits(0), torch.tensor([0, 1, 2, 2, 1, 0])
    certain = functional.one_hot(target, 3).double()
    expected = functional.cross_entropy(logits, target)
    assert torch.allclose(distillation_loss(logits, certain, 1.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_zero_and_flat_at_the_probabilities_of_the_teacher(temperature: float) -> None:
    logits = random_logits(1).requires_grad_()
    soft = soften(logits.detach().softmax(dim=1), temperature)
    assert torch.allclose(soft, (logits.detach() / temperature).softmax(dim=1))
    loss = distillation_loss(logits, soft, temperature)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-12)


def test_at_high_temperatures_the_gradient_is_that_of_matched_logits() -> None:
    # Hinton et al. 2015, equation 4: (z - v) / (rows * classes) for logits of mean zero.
    student, teacher = (random_logits(n) for n in (2, 3))
    student, teacher = (z - z.mean(dim=1, keepdim=True) for z in (student, teacher))
    student.requires_grad_()
    soft = (teacher / 1e4).softmax(dim=1)
    (gradient,) = torch.autograd.grad(distillation_loss(student, soft, 1e4), student)
    assert torch.allclose(gradient, (student - teacher).detach() / (6 * 3), rtol=1e-3)


@pytest.fixture(scope="module")
def data() -> LesionData:
    return read_data(micro_config(), FUSIONS["concat"].inputs)


def write_teacher(folder: Path, data: LesionData, malignancy: np.ndarray) -> Path:
    """A prediction file of all rows of a cohort, in a folder `predictions`."""
    path = folder / "predictions" / "test.csv"
    path.parent.mkdir(parents=True)
    table = pd.DataFrame({"image_id": data.cohort["image_id"], "p_malignant": malignancy})
    table.assign(p_benign=1 - malignancy).iloc[::-1].to_csv(path, index=False)
    return path


def test_probabilities_come_in_the_order_of_the_rows_at_the_prior_of_the_training(
    tmp_path: Path, data: LesionData
) -> None:
    malignancy = np.random.default_rng(0).uniform(0.05, 0.95, len(data.cohort))
    config = LossConfig(teacher=str(write_teacher(tmp_path, data, malignancy)), temperature=1.0)
    expected = malignancy[data.rows("train")]
    same = load_teacher(config, data, data.natural_prior.tolist())
    assert np.allclose(same[:, 1], expected, atol=1e-6)
    balanced = load_teacher(config, data, [0.5, 0.5])
    odds = data.natural_prior[0] / data.natural_prior[1]
    assert np.allclose(balanced[:, 1] / balanced[:, 0], odds * expected / (1 - expected), rtol=1e-4)


def test_a_teacher_that_was_trained_on_a_taught_row_is_refused(
    tmp_path: Path, data: LesionData
) -> None:
    path = write_teacher(tmp_path, data, np.full(len(data.cohort), 0.5))
    config = LossConfig(teacher=str(path))
    data.cohort.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(InputError, match=f"{len(data.rows('train'))} of 420 rows share an image"):
        load_teacher(config, data, [0.5, 0.5])
    # Of two folds, each trained on the rows that the other predicted.
    train = data.cohort.index.isin(data.rows("train"))
    for fold in (0, 1):
        part = np.where(np.arange(len(data.cohort)) % 2 == fold, "test", "train")
        folder = tmp_path / f"fold_{fold}"
        folder.mkdir()
        data.cohort.assign(part=part)[train].to_csv(folder / "cohort.csv", index=False)
    table = pd.read_csv(path)
    table["fold"] = (np.arange(len(table)) % 2)[::-1]
    table.to_csv(path, index=False)
    assert len(load_teacher(config, data, [0.5, 0.5])) == 420
    assert list_teacher_leaks(config, data.cohort) == []
    table["fold"] = 1 - table["fold"]
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match="rows share an image"):
        load_teacher(config, data, [0.5, 0.5])


def test_a_teacher_of_evaluated_rows_is_a_leak(
    tmp_path: Path, data: LesionData, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_teacher(tmp_path, data, np.full(len(data.cohort), 0.5))
    config = LossConfig(teacher=str(path))
    data.cohort.assign(part="train").to_csv(tmp_path / "cohort.csv", index=False)
    assert "280 of 280 validation and test rows share" in list_teacher_leaks(config, data.cohort)[0]
    (tmp_path / "cohort.csv").unlink()
    assert list_teacher_leaks(config, data.cohort) == []
    assert "its training rows are unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"p_mel": 0.5, "p_nv": 0.5}, "has the classes mel, nv"),
        ({"p_malignant": 0.5}, "lacks predictions of 419 of 420 training rows"),
    ],
)
def test_missing_rows_and_other_classes_are_refused(
    tmp_path: Path, data: LesionData, columns: dict[str, float], message: str
) -> None:
    path = tmp_path / "teacher.csv"
    first = data.cohort["image_id"].iloc[data.rows("train")[0]]
    pd.DataFrame({"image_id": [first], **columns}).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        load_teacher(LossConfig(teacher=str(path)), data, [0.5, 0.5])


def test_a_checkpoint_needs_its_predictions_first(data: LesionData) -> None:
    with pytest.raises(InputError, match="must be a prediction file"):
        load_teacher(LossConfig(teacher="best.ckpt"), data, [0.5, 0.5])


def test_a_step_mixes_both_losses(data: LesionData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = micro_config()
    config = replace(config, loss=replace(config.loss, teacher_share=0.25, temperature=2.0))
    module = micro_classifier(config, data).eval()
    losses: list[float] = []

    def accumulate(loss: torch.Tensor, rows: int) -> torch.Tensor:
        losses.append(float(loss.detach()) * rows / 16)
        return loss

    monkeypatch.setattr(module, "accumulate_loss", accumulate)
    batch = next(iter(data.train_dataloader()))
    module.training_step(batch)
    module.teacher = torch.full((len(data.rows("train")), 2), 0.5)
    module.training_step(batch)
    with torch.inference_mode():
        logits = module(batch).float()
    soft = distillation_loss(logits, torch.full_like(logits, 0.5), 2.0)
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * float(soft), rel=1e-5)
    assert "teacher" not in module.state_dict()
