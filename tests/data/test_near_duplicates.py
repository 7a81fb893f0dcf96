"""Near duplicates in the included cohort: copies that are found after common changes."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance

from skinmm.config import DataConfig
from skinmm.data.audit import (
    DISTANCE,
    HASH_SIDE,
    Fingerprints,
    audit,
    compute_fingerprints,
    find_near_duplicates,
)
from skinmm.data.cohorts import load_cohort, require_images
from skinmm.data.splits import split
from skinmm.images.source import read_source

FOLDER = os.environ.get("SKINMM_DATA", "")
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": lambda image: image,
    "half the size": lambda image: image.resize((128, 128)),
    "another aspect": lambda image: image.resize((300, 200)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "trimmed": lambda image: image.crop((3, 3, 253, 253)),
}


@pytest.fixture(scope="module")
def demo() -> pd.DataFrame:
    return load_cohort(DataConfig(name="demo")).rows.iloc[:60]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(demo: pd.DataFrame, tmp_path: Path, change: str) -> None:
    copies = demo.iloc[:5].assign(image_id="copy_" + demo["image_id"].iloc[:5])
    paths = []
    for name, path in zip(copies["image_id"], copies["path"], strict=True):
        file = tmp_path / f"{name}.jpg"
        CHANGES[change](Image.open(path)).save(file, quality=60)
        paths.append(str(file))
    table = pd.concat([demo, copies.assign(path=paths)], ignore_index=True)
    found = find_near_duplicates(compute_fingerprints(table, read_source))
    pairs = set(zip(found["first"], found["second"], strict=True))
    assert {(name, f"copy_{name}") for name in demo["image_id"].iloc[:5]} <= pairs
    assert (found["bits"] <= DISTANCE).all()


def test_the_embedded_cohort_has_no_near_duplicates() -> None:
    demo = load_cohort(DataConfig(name="demo")).rows
    assert find_near_duplicates(compute_fingerprints(demo, read_source)).empty


@pytest.mark.realdata
@pytest.mark.skipif(not FOLDER, reason="SKINMM_DATA does not name the real cohorts")
def test_official_pairs_whose_images_are_here_are_found() -> None:
    data = DataConfig(name="siim_isic", root=str(Path(FOLDER) / "siim_isic_2020"))
    table = require_images(load_cohort(data), "drop").rows
    pairs = table[table["duplicate_of"].isin(table["image_id"])]
    official = {frozenset(pair) for pair in pairs[["image_id", "duplicate_of"]].to_numpy().tolist()}
    found = find_near_duplicates(compute_fingerprints(table, read_source))
    assert {frozenset(pair) for pair in found[["first", "second"]].to_numpy().tolist()} == official
    assert len(official) == 3


def test_a_copy_on_the_other_side_is_a_leak() -> None:
    demo = load_cohort(DataConfig(name="demo")).rows
    table = split(demo, 5, 0, 0)
    sides = [table.index[table["part"] == part][0] for part in ("train", "test")]
    table.loc[sides[1], "path"] = table.loc[sides[0], "path"]
    found = find_near_duplicates(compute_fingerprints(table.loc[sides], read_source))
    report = audit(table, near=found)
    assert report["across_parts"]["near duplicate"] == 1
    assert [pair["kind"] for pair in report["pairs"]] == ["near duplicate"]


def test_sizes_and_unreadable_images_are_reported(demo: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    table = demo.iloc[:4].reset_index(drop=True)
    table.loc[1, "path"] = str(tmp_path / "text.jpg")
    table.loc[2, "path"] = str(tmp_path / "gone.jpg")
    table.loc[3, "path"] = None
    seen: list[None] = []
    found = compute_fingerprints(table, read_source, lambda: seen.append(None))
    assert found.image_id == [table["image_id"][0]]
    assert found.sizes.tolist() == [[256, 256]]
    assert list(found.unreadable) == table["image_id"][1:3].tolist()
    assert "not an image of a supported format" in found.unreadable[table["image_id"][1]]
    assert len(seen) == 3


def test_no_image_at_all_has_no_pairs(demo: pd.DataFrame) -> None:
    found = compute_fingerprints(demo.assign(path=None), read_source)
    assert found.bits.shape == (0, HASH_SIDE**2)
    assert find_near_duplicates(found).empty


@given(arrays(bool, st.tuples(st.integers(0, 30), st.just(16))), st.integers(0, 16))
def test_pairs_are_those_of_the_hamming_distance(bits: np.ndarray, distance: int) -> None:
    names = [f"{row:02}" for row in range(len(bits))]
    found = find_near_duplicates(
        Fingerprints(names, bits, np.zeros((len(bits), 2), np.int64), {}), distance
    )
    expected = {
        (names[one], names[other], int((bits[one] ^ bits[other]).sum()))
        for one in range(len(bits))
        for other in range(one + 1, len(bits))
        if (bits[one] ^ bits[other]).sum() <= distance
    }
    assert set(found.itertuples(index=False, name=None)) == expected


def test_an_image_in_a_buffer_of_another_format(demo: pd.DataFrame) -> None:
    stream = io.BytesIO()
    Image.open(demo["path"].iloc[0]).save(stream, "PNG")
    twice = demo.iloc[[0, 0]].assign(image_id=["jpeg", "png"], path=["jpeg", "png"])
    data = {"jpeg": Path(demo["path"].iloc[0]).read_bytes(), "png": stream.getvalue()}
    found = find_near_duplicates(compute_fingerprints(twice, lambda path: (data[path], None)))
    assert found[["first", "second"]].to_numpy().tolist() == [["jpeg", "png"]]
