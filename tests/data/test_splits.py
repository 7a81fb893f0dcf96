"""Splits: properties over any table of links, and balance."""

from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinmm.data.splits import (
    UNUSED,
    assign_parts,
    cut_calibration,
    deal_folds,
    find_components,
    hold_out,
    split,
)
from skinmm.errors import InputError

Cell = tuple[int, int | None, int | None, bool]


def cohort(rows: list[Cell]) -> pd.DataFrame:
    """Rows of (patient, lesion, duplicate of row, malignant)."""
    patient, lesion, duplicate, target = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "image_id": [f"image{n}" for n in range(len(rows))],
            "patient_id": [f"patient{n}" for n in patient],
            "lesion_id": [None if n is None else f"lesion{n}" for n in lesion],
            "duplicate_of": [None if n is None else f"image{n}" for n in duplicate],
            "target": np.array(target, np.int64),
            "age": [None if n is None else 40.0 for n in lesion],
        }
    )


cells = st.tuples(
    st.integers(0, 30),
    st.none() | st.integers(0, 40),
    st.none() | st.integers(0, 60),
    st.booleans(),
)
cohorts = st.lists(cells, min_size=1, max_size=60).map(cohort)


def plain(patients: int = 60, images: int = 3) -> pd.DataFrame:
    """A cohort of independent patients, every fifth malignant."""
    return cohort([(n, None, None, n % 5 == 0) for n in range(patients) for _ in range(images)])


@given(cohorts)
def test_components_are_those_of_the_links(table: pd.DataFrame) -> None:
    linked = np.eye(len(table), dtype=bool)
    same_column = [(name, name) for name in ("patient_id", "lesion_id", "duplicate_of")]
    for one, other in (*same_column, ("image_id", "duplicate_of")):
        same = table[one].to_numpy()[:, None] == table[other].to_numpy()[None, :]
        same &= table[one].notna().to_numpy()[:, None]
        linked |= same | same.T
    for _ in range(len(table).bit_length()):  # paths of twice the length with every squaring
        linked = linked @ linked
    component = find_components(table)
    np.testing.assert_array_equal(component[:, None] == component[None, :], linked)


@given(cohorts, st.integers(2, 6), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_folds_keep_components_whole_and_ignore_row_order(
    table: pd.DataFrame, folds: int, seed: int, random: Random
) -> None:
    component = find_components(table)
    if len(set(component)) < folds:
        with pytest.raises(InputError, match="independent patients"):
            deal_folds(table, folds, seed)
        return
    fold = deal_folds(table, folds, seed)
    assert set(fold) == set(range(folds))
    assert pd.Series(fold).groupby(component).nunique().max() == 1
    order = list(range(len(table)))
    random.shuffle(order)
    np.testing.assert_array_equal(deal_folds(table.iloc[order], folds, seed), fold[order])


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_balanced(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, 300)
    rows: list[Cell] = [
        (patient, None if rng.random() < 0.1 else image, None, bool(rng.random() < 0.02))
        for patient, size in enumerate(sizes)
        for image in range(patient * 100, patient * 100 + int(size))
    ]
    table = cohort(rows)
    fold = deal_folds(table, 5, seed)
    for counts in (
        np.bincount(fold),
        np.bincount(fold[table["target"] == 1]),
        np.bincount(fold[table["age"].isna()]),
        table["patient_id"].groupby(fold).nunique(),
    ):
        assert np.ptp(counts) <= max(3, 0.05 * counts.mean())


def test_another_seed_is_another_deal() -> None:
    table = plain()
    together = [
        deal_folds(table, 5, seed)[:, None] == deal_folds(table, 5, seed)[None, :]
        for seed in (0, 1)
    ]
    assert (together[0] != together[1]).any()


def test_parts_are_cyclic_and_every_row_is_tested_once() -> None:
    fold_of = np.arange(10) % 5
    for fold in range(5):
        part = assign_parts(fold_of, fold, 5)
        assert set(fold_of[part == "test"]) == {fold}
        assert set(fold_of[part == "val"]) == {(fold + 1) % 5}
        assert (part == "train").sum() == 6


def test_split_without_fixed_rows_is_deal_and_parts() -> None:
    table = plain()
    result = split(table, 5, 4, 0)
    fold_of = deal_folds(table, 5, 0)
    np.testing.assert_array_equal(result["fold"], fold_of)
    np.testing.assert_array_equal(result["part"], assign_parts(fold_of, 4, 5))


def test_a_fixed_test_part_stays_and_validation_rotates() -> None:
    table = plain().assign(part=None)
    table.loc[:29, "part"] = "test"
    results = [split(table, 5, fold, 0) for fold in range(5)]
    for result in results:
        assert (result["part"][:30] == "test").all()
        assert set(result["part"][30:]) == {"train", "val"}
        assert (result["fold"][:30] == -1).all()
    judged = sum((result["part"] == "val").to_numpy().astype(int) for result in results)
    np.testing.assert_array_equal(judged, [0] * 30 + [1] * 150)


def test_a_fixed_validation_part_stays_and_test_rotates() -> None:
    table = plain().assign(part=None)
    table.loc[:29, "part"] = "val"
    result = split(table, 5, 2, 0)
    assert (result["part"][:30] == "val").all()
    assert set(result["part"][30:]) == {"train", "test"}


def test_two_fixed_parts_leave_one_split() -> None:
    table = plain().assign(part=None)
    table.loc[:29, "part"] = "val"
    table.loc[30:59, "part"] = "test"
    assert (split(table, 5, 0, 0)["part"][60:] == "train").all()
    with pytest.raises(InputError, match=r"data.fold=1.*set data.fold=0"):
        split(table, 5, 1, 0)


def test_extra_rows_are_never_judged_and_never_leak() -> None:
    table = plain()
    extra = plain(patients=80).assign(part="train")
    extra["image_id"] = "extra_" + extra["image_id"]
    joined = pd.concat([table.assign(part=None), extra], ignore_index=True)
    result = split(joined, 5, 0, 0)
    assert set(result["part"][len(table) :]) == {"train", UNUSED}
    used = result[result["part"] != UNUSED]
    sides = used.groupby(find_components(used))["part"].nunique()
    assert sides.max() == 1
    strangers = ~extra["patient_id"].isin(table["patient_id"])
    assert (result["part"][len(table) :][strangers.to_numpy()] == "train").all()


@given(cohorts, st.lists(st.sampled_from([None, None, "train"]), min_size=60, max_size=60))
@settings(max_examples=60, deadline=None)
def test_rows_that_a_fixed_row_links_stay_together(
    table: pd.DataFrame, fixed: list[str | None]
) -> None:
    """Two images may be linked through another cohort's alone."""
    table = table.assign(part=pd.Series(fixed[: len(table)], dtype=object))
    try:
        result = split(table, 3, 0, 0)
        held = hold_out(table, 0.3, 0)
    except InputError:
        return
    component = find_components(table)
    for part in (result["part"][result["part"] != UNUSED], held["part"][table["part"].isna()]):
        sides = part.fillna("free").groupby(component[part.index]).nunique()
        assert sides.max() == 1


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_hold_out_takes_about_the_fraction_of_everything(fraction: float) -> None:
    table = plain(patients=100)
    part = hold_out(table, fraction, 0)["part"]
    test = part == "test"
    assert test.mean() == pytest.approx(fraction, abs=0.02)
    assert table["target"][test].mean() == pytest.approx(0.2, abs=0.02)
    assert not set(table["patient_id"][test]) & set(table["patient_id"][~test])


def test_hold_out_refuses_nonsense() -> None:
    with pytest.raises(InputError, match=r"between 0\.01 and 0\.5"):
        hold_out(plain(), 0.9, 0)
    with pytest.raises(InputError, match="already has a test part"):
        hold_out(plain().assign(part="test"), 0.2, 0)


def test_public_folds_replace_the_deal() -> None:
    table = plain()
    public = table["patient_id"].str.removeprefix("patient").astype(int) % 15
    result = split(table.assign(public_fold=public), 5, 3, 0)
    np.testing.assert_array_equal(result["fold"], public % 5)
    with pytest.raises(InputError, match="divisor of the 15 public folds"):
        split(table.assign(public_fold=public), 4, 0, 0)


@given(cohorts, st.sampled_from([0.2, 0.5, 0.9]), st.integers(0, 5))
@settings(max_examples=50)
def test_calibration_rows_are_whole_components_of_validation(
    table: pd.DataFrame, share: float, seed: int
) -> None:
    component = find_components(table)
    is_val = component % 2 == 0  # whole components in each part
    table = table.assign(part=np.where(is_val, "val", "train"))
    malignant = table["target"].to_numpy() == 1
    if len(set(component[is_val])) < 2:
        return
    cut = cut_calibration(table, share, malignant, seed)
    is_cut = (cut["part"] == "calibration").to_numpy()
    assert is_val[is_cut].all()
    assert not set(component[is_cut]) & set(component[~is_cut])
    assert (cut["part"].to_numpy()[~is_cut] == table["part"].to_numpy()[~is_cut]).all()
    order = np.random.default_rng(seed).permutation(len(table))
    again = cut_calibration(table.iloc[order], share, malignant[order], seed)
    pd.testing.assert_series_equal(again["part"].sort_index(), cut["part"])


def test_calibration_rows_are_stratified() -> None:
    table = plain(patients=500).assign(part="val")
    malignant = table["target"].to_numpy() == 1
    part = cut_calibration(table, 0.3, malignant, 0)["part"]
    assert (part == "calibration").mean() == pytest.approx(0.3, abs=0.01)
    assert malignant[part == "calibration"].mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("patients", "is_cut"), [(119, False), (120, True), (130, True)])
def test_auto_cuts_where_both_halves_can_guarantee_a_sensitivity(
    patients: int, is_cut: bool
) -> None:
    malignant_ones = [(n, None, None, True) for n in range(patients)]
    benign = [(1000 + n, None, None, False) for n in range(300)]
    table = cohort([*malignant_ones, *benign]).assign(part="val")
    malignant = table["target"].to_numpy() == 1
    part = cut_calibration(table, "auto", malignant, 0)["part"]
    assert ("calibration" in set(part)) == is_cut
    assert cut_calibration(table, 0, malignant, 0) is table
    if is_cut:
        counts = part[malignant].value_counts()
        assert counts.min() >= 60
