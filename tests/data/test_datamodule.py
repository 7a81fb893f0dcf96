"""The datamodule: parts, what is fitted on which rows, and what every loader hands over."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dicom_files import dicom_from_jpeg
from micro_runs import micro_config, read_data, table_cohort
from torch import Tensor

from skinmm.config import Component, Config, DataConfig, ExtraCohort
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.images.tfrecord import write_tfrecord

BOTH = frozenset({"image", "record"})
RECORD = frozenset({"record"})
PARTS = ("train", "val", "test")


@pytest.fixture
def table(tmp_path: Path) -> DataConfig:
    return table_cohort(tmp_path)


def batches(data: LesionData, epoch: int) -> Iterator[dict[str, Tensor]]:
    """The training batches of an epoch, as Lightning asks for them."""
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return iter(loader)


def joined(parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    held = list(parts)
    return {name: torch.cat([batch[name] for batch in held]) for name in held[0]}


def test_parts_share_no_patient_and_cover_the_cohort(table: DataConfig) -> None:
    data = read_data(micro_config(data=table), RECORD)
    patients = [set(data.cohort["patient_id"].iloc[data.rows(part)]) for part in PARTS]
    assert sum(map(len, patients)) == len(set[str]().union(*patients)) == 60
    assert sum(len(data.rows(part)) for part in PARTS) == len(data.cohort) == 120
    shares = np.bincount(data.targets[data.rows("train")]) / len(data.rows("train"))
    np.testing.assert_allclose(data.natural_prior, shares)
    assert data.classes == ("benign", "malignant")


def test_the_encoder_knows_training_rows_alone(tmp_path: Path, table: DataConfig) -> None:
    before = read_data(micro_config(data=table), RECORD)
    judged = np.concatenate([before.rows("val"), before.rows("test")])
    cells = [line.split(",") for line in (tmp_path / "cohort.csv").read_text().splitlines()]
    for row in judged:
        cells[row + 1][2:5] = ["5.0", "male", "palms/soles"]
    (tmp_path / "cohort.csv").write_text("\n".join(map(",".join, cells)))
    after = read_data(micro_config(data=table), RECORD)
    np.testing.assert_array_equal(after.rows("train"), before.rows("train"))
    assert after.encoder.to_state() == before.encoder.to_state()
    assert sum(after.record_widths) == after.encoder.dim
    assert after.fitted_on == after.cohort["image_id"].iloc[after.rows("train")].tolist()
    limited = read_data(micro_config(data=replace(table, limit=10)), RECORD)
    assert len(limited.fitted_on) == 10


@pytest.mark.parametrize(("limit", "counts"), [(10, [5, 5]), (50, [26, 24]), (None, [48, 24])])
def test_a_limit_takes_from_every_class_in_turn(
    table: DataConfig, limit: int | None, counts: list[int]
) -> None:
    data = read_data(micro_config(data=replace(table, limit=limit)), RECORD)
    assert np.bincount(data.training_targets).tolist() == counts
    np.testing.assert_allclose(data.natural_prior, [2 / 3, 1 / 3])
    again = read_data(micro_config(data=replace(table, limit=limit)), RECORD)
    first, second = (joined(batches(each, 0))["record"] for each in (data, again))
    assert torch.equal(first, second)


def test_the_prior_of_use_is_that_of_the_cohort_that_is_judged(
    table: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "classes").mkdir()
    for name, count in (("benign", 5), ("malignant", 95)):
        (tmp_path / "classes" / name).mkdir()
        for row in range(count):
            (tmp_path / "classes" / name / f"{name}{row}.jpg").touch()
    extra = ExtraCohort("image_folder", str(tmp_path / "classes"))
    data = read_data(micro_config(data=replace(table, extra=[extra])), RECORD)
    assert np.bincount(data.training_targets).tolist() == [48 + 5, 24 + 95]
    np.testing.assert_allclose(data.natural_prior, [2 / 3, 1 / 3])


def test_another_cohort_of_the_same_adapter_does_not_count_as_in_use(
    table: DataConfig, tmp_path: Path
) -> None:
    rows = "\n".join(f"J{row},Q{row},{row % 10 and 1}" for row in range(100))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "cohort.csv").write_text(f"image,patient,target\n{rows}\n")
    extra = ExtraCohort("csv", str(tmp_path / "more"))
    data = read_data(micro_config(data=replace(table, extra=[extra])), RECORD)
    np.testing.assert_allclose(data.natural_prior, [2 / 3, 1 / 3])


def test_a_model_of_records_asks_for_no_image(table: DataConfig) -> None:
    data = read_data(micro_config(data=table, workers=4), RECORD)
    loader = data.train_dataloader()
    assert loader.num_workers == 0
    assert set(next(iter(loader))) == {"row", "target", "record"}
    with pytest.raises(InputError, match="120 of 120 images are not on disk"):
        read_data(micro_config(data=table), BOTH)


def test_the_three_formats_give_the_same_training_batches(tmp_path: Path, pictures: Path) -> None:
    """The same cohort as JPEG, as DICOM around the JPEG streams and as a public TFRecord."""
    table = pd.read_csv(pictures.parent / "cohort.csv").groupby("target").head(15)
    table = table.rename(columns={"image_id": "image_name"}).assign(patient_id=table["image_id"])
    table.to_csv(tmp_path / "train.csv", index=False)
    streams = {name: (pictures / f"{name}.jpg").read_bytes() for name in table["image_name"]}
    for folder in ("jpeg/train", "train", "tfrecords"):
        (tmp_path / folder).mkdir(parents=True)
    for name, stream in streams.items():
        (tmp_path / "jpeg" / "train" / f"{name}.jpg").write_bytes(stream)
        (tmp_path / "train" / f"{name}.dcm").write_bytes(dicom_from_jpeg(stream))
    records = ({"image_name": name, "image": stream} for name, stream in streams.items())
    write_tfrecord(tmp_path / "tfrecords" / "train00-30.tfrec", records)
    suffixes, epochs = {"jpeg": ".jpg", "dicom": ".dcm", "tfrecord": ".tfrec#"}, []
    for image_format, suffix in suffixes.items():
        cohort = DataConfig(name="siim_isic", root=str(tmp_path), format=image_format)
        data = read_data(micro_config(data=cohort, batch_size=8), BOTH)
        assert data.cohort["path"].str.contains(suffix, regex=False).all()
        epochs.append(list(batches(data, 0)))
    assert len(epochs[0]) == 2
    for batch, *others in zip(*epochs, strict=True):
        assert {"image", "record", "target", "row"} <= set(batch)
        for other in others:
            assert all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("part", ["val", "test"])
def test_evaluation_hands_over_every_row_once_in_order_and_unaugmented(part: str) -> None:
    data = read_data(micro_config(eval_batch_size=50), BOTH)
    seen = joined(iter(data.evaluation_loader(part)))
    rows = data.rows(part)
    assert seen["row"].tolist() == list(range(len(rows)))
    assert seen["target"].tolist() == data.targets[rows].tolist()
    np.testing.assert_array_equal(
        seen["record"].numpy(), data.encoder.transform(data.cohort.iloc[rows])
    )
    dataset: Any = data.evaluation_loader(part).dataset
    assert torch.equal(seen["image"][3], dataset[3, None]["image"])


def test_augmentation_follows_from_seed_epoch_and_place_whatever_the_processes() -> None:
    """Other libraries repeat an epoch's augmentations in the next where workers are used."""
    few = DataConfig(limit=12)
    alone, helped = (
        read_data(micro_config(data=few, batch_size=4, workers=workers), BOTH) for workers in (0, 2)
    )
    loader: Any = helped.train_dataloader()  # its processes stay from epoch to epoch
    assert loader.persistent_workers
    epochs = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        epochs.append(joined(batches(alone, epoch)))
        for name, values in joined(iter(loader)).items():
            assert torch.equal(values, epochs[epoch][name])
    first, second = (
        {int(row): image for row, image in zip(e["row"], e["image"], strict=True)} for e in epochs
    )
    assert not any(torch.equal(first[row], second[row]) for row in first)
    other = read_data(replace(micro_config(data=few, batch_size=4), seed=1), BOTH)
    assert not torch.equal(joined(batches(other, 0))["image"], epochs[0]["image"])


def placed(config: Config, rank: int, world: int) -> LesionData:
    """The datamodule of one rank, as Lightning's trainer would tell it."""
    data = read_data(config, RECORD)
    place = {"global_rank": rank, "world_size": world, "num_devices": world}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, **place)  # type: ignore[assignment]
    return data


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_rows_of_every_loader(table: DataConfig, world: int) -> None:
    config = micro_config(data=table, batch_size=4)
    ranks = [placed(config, rank, world) for rank in range(world)]
    whole = replace(config, trainer=replace(config.trainer, batch_size=4 * world))
    single = joined(batches(read_data(whole, RECORD), 0))["row"].tolist()
    trained = [joined(batches(data, 0))["row"].tolist() for data in ranks]
    assert sorted(row for part in trained for row in part) == sorted(single)
    judged = [joined(iter(data.evaluation_loader("test")))["row"].tolist() for data in ranks]
    assert {row for part in judged for row in part} == set(range(len(ranks[0].rows("test"))))
    assert len({len(part) for part in judged}) == 1


def test_neighbours_share_the_cores() -> None:
    config = micro_config(workers=None)
    alone = read_data(config, BOTH).train_dataloader().num_workers
    many = placed(config, 0, 64)
    many.inputs = BOTH
    assert many.train_dataloader().num_workers == 1 <= alone <= 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": Component("weighted", {"power": 9.0})}, "power=9"),
        ({"augment": Component("standard", {"zoom": 0.0})}, "zoom=0"),
        ({"sampler": Component("lucky")}, "unknown sampler 'lucky'"),
    ],
)
def test_bad_arguments_are_refused_before_data_is_read(
    changes: dict[str, Any], message: str
) -> None:
    config = replace(micro_config(data=DataConfig(name="csv", root="/nowhere")), **changes)
    with pytest.raises(InputError, match=message):
        LesionData(config, RECORD)


def augmented(where: str, name: str) -> dict[str, Tensor]:
    """A training epoch as the network gets it."""
    config = replace(micro_config(augment_on=where), augment=Component(name))
    data = read_data(replace(config, data=replace(config.data, limit=24)), BOTH)
    handed = (data.on_after_batch_transfer(batch, 0) for batch in batches(data, 1))
    return joined(handed)


@pytest.mark.parametrize("name", ["standard", "strong", "randaugment"])
def test_pictures_augmented_after_the_loader_are_those_of_its_processes(name: str) -> None:
    early, late = augmented("workers", name), augmented("device", name)
    assert early.keys() == late.keys() == {"row", "target", "image", "record"}
    assert late["image"].dtype == torch.uint8
    for key, values in early.items():
        assert torch.equal(values, late[key])
    assert not torch.equal(late["image"], augmented("device", "none")["image"])


def test_what_is_judged_is_never_augmented() -> None:
    data = read_data(micro_config(augment_on="device"), BOTH)
    batch = next(iter(data.evaluation_loader("val")))
    before = batch["image"].clone()
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["standard", "strong", "randaugment"])
def test_a_gpu_augments_as_a_cpu_does(name: str) -> None:
    config = replace(micro_config(augment_on="device"), augment=Component(name))
    data = read_data(config, BOTH)
    batch = next(batches(data, 0))
    there = {key: values.cuda() for key, values in batch.items()}
    made, expected = (data.on_after_batch_transfer(each, 0)["image"] for each in (there, batch))
    assert (made.device.type, made.dtype) == ("cuda", torch.uint8)
    far = (made.cpu().int() - expected.int()).abs() > 2  # rounding, and edges of a rotation
    assert far.float().mean() < 0.02
