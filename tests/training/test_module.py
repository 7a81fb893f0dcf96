"""The LightningModule: outcomes of whole splits, precision, the optimiser, what Lightning draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_runs import micro_config, parts, table_cohort, with_model
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

from skinmm.config import Component, Config
from skinmm.data.sampling import SAMPLERS, draw_epoch, shard, shard_evaluation
from skinmm.models.checkpoint import KEY, load_card
from skinmm.training.fold import list_warnings
from skinmm.training.module import RowCollector, validation_metrics


@pytest.fixture
def records(tmp_path: Path) -> Config:
    """Two epochs on records alone: no image is decoded."""
    return micro_config("tabular_only", table_cohort(tmp_path), max_epochs=2)


@given(st.integers(1, 60), st.sampled_from([1, 2, 3, 8]), st.integers(1, 7))
@settings(max_examples=40)
def test_gathered_outcomes_hold_every_row_once_in_order(rows: int, world: int, batch: int) -> None:
    """Ranks are padded to one length by repeats, which would count twice."""
    outcomes = RowCollector()
    for rank in range(world):
        for some in torch.split(torch.from_numpy(shard_evaluation(rows, rank, world)), batch):
            outcomes.update(some, some[:, None] * torch.ones(2), some % 2)
    logits, targets = outcomes.take()
    assert logits[:, 0].tolist() == list(range(rows))
    assert targets.tolist() == [row % 2 for row in range(rows)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize(("classes", "present"), [(2, 2), (4, 4), (5, 3)])
def test_monitored_values_are_scikit_learn_s(classes: int, present: int, scale: float) -> None:
    """Whether scores are logits or probabilities is never guessed; absent classes do not count."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, present, 80)
    logits = torch.tensor(scale * (rng.normal(size=(80, classes)) + np.eye(classes)[targets]))
    probabilities = logits.softmax(dim=1)
    values = validation_metrics(probabilities, torch.from_numpy(targets), [1, 2][: classes - 1])
    scores = probabilities.numpy()
    ranks = [roc_auc_score(targets == each, scores[:, each]) for each in range(present)]
    malignant = scores[:, 1:3].sum(axis=1) if classes > 2 else scores[:, 1]
    predicted = np.where(scores.argmax(axis=1) < present, scores.argmax(axis=1), (targets + 1) % 2)
    expected = {
        "auroc": np.mean(ranks),
        "auprc": average_precision_score(np.isin(targets, [1, 2]), malignant),
        "balanced_accuracy": balanced_accuracy_score(targets, predicted),
    }
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "defined"),
    [
        ([2, 2], {"balanced_accuracy"}),
        ([1, 2], {"balanced_accuracy", "auroc"}),  # both malignant
        ([0, 2], {"balanced_accuracy", "auroc", "auprc"}),
    ],
)
def test_what_one_class_does_not_define_is_left_out(targets: list[int], defined: set[str]) -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    assert validation_metrics(probabilities, torch.tensor(targets), [1, 2]).keys() == defined


@pytest.mark.parametrize("batch", [3, 64])
def test_validation_is_of_the_whole_split_whatever_the_batches(
    batch: int, records: Config, tmp_path: Path
) -> None:
    """Most batches of a rare disease hold no positive row, so no mean over batches is taken."""
    config = replace(records, trainer=replace(records.trainer, eval_batch_size=batch))
    module, data, trainer = parts(config, tmp_path / "run")
    (logged,) = trainer.validate(module, data.evaluation_loader("val"), verbose=False)
    rows = data.rows("val")
    table = torch.from_numpy(data.encoder.transform(data.cohort.iloc[rows]))
    with torch.no_grad():
        logits = module.network.eval()(None, table)
    assert logged["val/auroc"] == pytest.approx(
        roc_auc_score(data.targets[rows], logits.softmax(dim=1)[:, 1].numpy())
    )
    targets = torch.from_numpy(data.targets[rows])
    assert logged["val/loss"] == pytest.approx(float(module.loss(logits, targets)))


def test_test_outcomes_are_32_bit_though_the_run_is_not(tmp_path: Path) -> None:
    """Sixteen bits move probabilities by a hundredth: enough to cross a threshold."""
    tested, validated = [], []
    for precision in ("32", "bf16"):
        module, data, trainer = parts(micro_config(precision=precision), tmp_path / precision)
        trainer.test(module, data.evaluation_loader("val"), verbose=False)
        tested.append(module.test_outputs)
        (logged,) = trainer.validate(module, data.evaluation_loader("val"), verbose=False)
        validated.append(logged["val/loss"])
    assert torch.equal(tested[0][0], tested[1][0])
    assert tested[0][1].tolist() == data.targets[data.rows("val")].tolist()
    assert validated[0] != pytest.approx(validated[1], abs=1e-6)


def test_the_loss_is_32_bit_though_the_network_is_not(tmp_path: Path) -> None:
    module, data, trainer = parts(micro_config(), tmp_path)
    module.trainer = trainer
    batch = next(iter(data.train_dataloader()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(batch).dtype == torch.bfloat16
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        assert module.training_step(batch).dtype == torch.float32


def test_compiling_leaves_no_prefix_in_the_state(tmp_path: Path) -> None:
    plain, _, _ = parts(micro_config(), tmp_path)
    compiled, _, _ = parts(micro_config(compile=True), tmp_path)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lightning_draws_each_epoch_as_the_sampler_says(
    sampler: str, records: Config, tmp_path: Path
) -> None:
    """A sampler that Lightning wraps or forgets to tell the epoch draws something else."""
    config = replace(records, sampler=Component(sampler), seed=3)
    module, data, trainer = parts(config, tmp_path / "run")
    seen: dict[int, list[int]] = {}

    class Recorder(pl.Callback):
        """Notes the rows of each batch."""

        def on_train_batch_start(
            self, trainer: pl.Trainer, _: object, batch: dict[str, Tensor], __: int
        ) -> None:
            seen.setdefault(trainer.current_epoch, []).extend(batch["row"].tolist())

    trainer.callbacks.append(Recorder())  # type: ignore[attr-defined]
    trainer.fit(module, data)
    for epoch in range(2):
        draw, _ = draw_epoch(data.sampler, data.training_targets, data.training_groups, 3, epoch)
        assert seen[epoch] == shard(draw, 0, 1, 16).tolist()


def test_settings_without_effect_are_named(records: Config, tmp_path: Path) -> None:
    config = with_model(records, drop_image=0.3, drop_columns=0.1)
    config = replace(config, evaluation=replace(config.evaluation, cost_ratio=9.0))
    module, data, _ = parts(config, tmp_path / "run")
    no_findings: dict[str, list[str]] = {"warnings": [], "possible_leaks": [], "leaks": []}
    assert list_warnings(data, module, no_findings) == [
        "model.drop_image=0.3 has no effect with fusion=tabular_only",
        "evaluation.cost_ratio has no effect with evaluation.threshold=sensitivity",
    ]


def test_a_checkpoint_of_a_run_is_plain_data(records: Config, tmp_path: Path) -> None:
    module, data, trainer = parts(records, tmp_path / "run")
    trainer.fit(module, data)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    card, weights = load_card(last)
    assert card == module.card
    assert all(
        torch.equal(weights[name], held) for name, held in module.network.state_dict().items()
    )
    whole = torch.load(last, weights_only=True)
    assert set(whole["state_dict"]) == {f"network.{name}" for name in module.network.state_dict()}
    assert plain(whole[KEY])


def plain(value: object) -> bool:
    """Whether nothing but dictionaries, lists, text and numbers is in there."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(held) for key, held in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None))
