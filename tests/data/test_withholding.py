"""What training rows are shown without: as often as asked for, by the row's seed alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from torch.utils.data import default_collate

from skinmm.data.dataset import (
    CachedFeatures,
    EmptyRecord,
    ImageError,
    Key,
    LesionDataset,
    ModalityDropout,
    View,
)
from skinmm.data.record import RecordEncoder

TABLE = pd.DataFrame(
    {
        "age": [55.0, 30.0, np.nan, 70.0],
        "sex": ["female", "male", None, "male"],
        "site": ["torso", None, "head/neck", "oral/genital"],
    }
)
ENCODER = RecordEncoder.fit(TABLE, ["age", "sex", "site"])
WIDTHS = [column.stop - column.start for column in ENCODER.layout]
EMPTY = EmptyRecord(ENCODER.blank, WIDTHS)


def test_each_kind_is_withheld_as_often_as_asked_for() -> None:
    dropout, rows = ModalityDropout(image=0.2, record=0.1, column=0.3), 3000
    drawn = [dropout.draw(seed, 3) for seed in range(rows)]
    images = sum(each.image for each in drawn)
    columns = np.sum([each.columns for each in drawn], axis=0)
    whole = sum(each.columns.all() for each in drawn)
    assert binomtest(images, rows, 0.2).pvalue > 1e-3
    for count in columns:
        assert binomtest(int(count), rows, 1 - 0.9 * 0.7).pvalue > 1e-3
    assert binomtest(int(whole), rows, 0.1 + 0.9 * 0.3**3).pvalue > 1e-3
    both = sum(each.image and each.columns[0] for each in drawn)
    assert binomtest(int(both), rows, 0.2 * (1 - 0.9 * 0.7)).pvalue > 1e-3


def test_a_seed_says_what_is_withheld() -> None:
    dropout = ModalityDropout(0.5, 0.2, 0.5)
    one, other = dropout.draw(7, 3), dropout.draw(7, 3)
    assert one.image == other.image
    np.testing.assert_array_equal(one.columns, other.columns)


@pytest.mark.parametrize("withheld", [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
def test_a_withheld_column_is_encoded_as_a_missing_one(withheld: list[int]) -> None:
    columns = np.array(withheld, dtype=bool)
    without = TABLE.astype(object)
    without.loc[:, columns] = None
    records = torch.from_numpy(ENCODER.transform(TABLE))
    expected = torch.from_numpy(ENCODER.transform(without))
    filled = EMPTY.fill(records, np.broadcast_to(columns, (len(TABLE), 3)))
    assert torch.equal(filled, expected)
    assert torch.equal(EMPTY.fill(records[1], columns), expected[1])


def dataset(dropout: ModalityDropout) -> LesionDataset:
    records = ENCODER.transform(TABLE)
    names = [f"I{row}" for row in range(4)]
    return LesionDataset(
        np.zeros(4, dtype=np.int64),
        names,
        records=records,
        paths=["nowhere.jpg"] * 4,
        view=View(8),
        dropout=dropout,
        empty=EMPTY,
    )


def test_only_samples_with_a_seed_lack_something() -> None:
    sample = dataset(ModalityDropout(image=1.0, record=1.0))[1, 5]
    assert sample["has_image"] is False
    assert not sample["image"].any()
    assert torch.equal(sample["record"], torch.from_numpy(ENCODER.blank))
    rows = dataset(ModalityDropout(image=1.0, column=0.5))
    seeds = [rows[1, seed]["record"] for seed in range(8)]
    assert torch.equal(rows[1, 3]["record"], seeds[3])
    assert len({tuple(record.tolist()) for record in seeds}) > 1
    with pytest.raises(ImageError, match=r"image I1 \(nowhere\.jpg\)"):  # so it is looked for
        rows[1, None]


def test_rows_of_cached_features_come_as_one_batch_of_the_same_samples() -> None:
    rng = np.random.default_rng(0)
    rows = LesionDataset(
        np.array([0, 2, 1, 0]),
        [f"I{row}" for row in range(4)],
        records=ENCODER.transform(TABLE),
        paths=["nowhere.jpg"] * 4,
        dropout=ModalityDropout(image=0.4, column=0.4),
        empty=EMPTY,
        features=CachedFeatures(rng.random((6, 2, 5), np.float32), np.array([5, 0, 3, 1])),
    )
    keys: list[Key] = [(row, seed) for row in (2, 0, 3, 1) for seed in (None, 1, 2, 3)]
    whole = rows.__getitems__(keys)
    assert isinstance(whole, dict)
    singly = default_collate([rows[key] for key in keys])
    assert whole.keys() == singly.keys()
    for name, values in whole.items():
        assert torch.equal(values, singly[name])
        assert values.dtype == singly[name].dtype
    assert {*whole["has_image"].tolist()} == {True, False}
