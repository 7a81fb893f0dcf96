"""Packing: the same pictures and records come out, whole, whatever happens on the way."""

import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import skinmm
from skinmm.config import DataConfig
from skinmm.data.cohorts.packs import packed as adapter
from skinmm.data.cohorts.public import demo
from skinmm.data.columns import add_units
from skinmm.data.pack import assign_shards, pack
from skinmm.data.packed import (
    Encoder,
    PackError,
    PackSettings,
    Shard,
    load_manifest,
    load_packed_steps,
    verify_pack,
    write_shard,
)
from skinmm.errors import InputError
from skinmm.images.decode import decode
from skinmm.images.preprocess import preprocess
from skinmm.images.shards import read_records, read_tfrecord_image

SMALL = PackSettings(size=96, shard_images=6)


def read(path: str) -> tuple[bytes, int | None]:
    """What the catalog's paths mean, as far as these tests need it."""
    name, _, frame = path.partition("#frame=")
    return Path(name).read_bytes(), int(frame) if frame else None


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Sixteen images of the demo: a PNG that is not square, a small JPEG, one with a profile."""
    folder = tmp_path_factory.mktemp("images")
    table = demo(DataConfig()).rows.iloc[:16].copy()
    table["patient_id"] = [None, None, *"abcabcabcabcde"]
    table["thickness"] = np.linspace(0.1, 0.8, 16)
    picture = Image.open(table["path"].iloc[2])
    picture.crop((0, 40, 256, 168)).save(folder / "wide.png")
    picture.resize((90, 96)).save(folder / "small.jpg", icc_profile=b"")
    table.loc[table.index[2:4], "path"] = [str(folder / "wide.png"), str(folder / "small.jpg")]
    table.loc[table.index[0], ["width", "height"]] = 6000, 4000
    return table


@pytest.fixture(scope="module")
def folder(cohort: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "new"
    pack(cohort, out, read, SMALL, workers=2)
    return out


def test_the_adapter_reads_the_cohort_back(cohort: pd.DataFrame, folder: Path) -> None:
    config = DataConfig(name="packed", root=str(folder), columns=["age", "thickness"])
    table = adapter(config).rows
    same = ["image_id", "patient_id", "age", "sex", "site", "diagnosis", "target", "thickness"]
    got, expected = (
        rows[same].astype(object).where(rows[same].notna(), None) for rows in (table, cohort)
    )
    pd.testing.assert_frame_equal(got, expected.reset_index(drop=True), rtol=1e-12)
    assert table["path"].notna().all()
    sides = table[["width", "height"]].to_numpy().tolist()
    assert sides[:5] == [[6000, 4000], [256, 256], [256, 128], [90, 96], [256, 256]]


def test_units_are_kept(cohort: pd.DataFrame, tmp_path: Path) -> None:
    table = cohort.assign(path=cohort["path"].astype(str))
    pack(add_units(table, {"thickness": "mm"}), tmp_path, read, SMALL, workers=1)
    packed = adapter(DataConfig(name="packed", root=str(tmp_path), columns=["age", "thickness"]))
    assert packed.units == {"thickness": "mm"}
    np.testing.assert_allclose(packed.rows["thickness"], cohort["thickness"])


def test_pictures_are_those_that_pillow_resizes(cohort: pd.DataFrame, folder: Path) -> None:
    table = adapter(DataConfig(name="packed", root=str(folder))).rows
    for source, path in zip(cohort["path"], table["path"], strict=True):
        original = Image.open(source).convert("RGB")
        scale = min(1, 96 / min(original.size))
        size = round(original.width * scale), round(original.height * scale)
        expected = np.asarray(original.resize(size, Image.Resampling.BILINEAR), dtype=float)
        pixels = decode(read_tfrecord_image(path))
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).mean() < 3


def test_steps_are_taken_before_pictures_are_made_small(
    cohort: pd.DataFrame, tmp_path: Path
) -> None:
    steps = ("border", "colour")
    settings = PackSettings(size=96, steps=steps)
    pack(cohort.iloc[:2], tmp_path, read, settings, workers=1)
    assert load_packed_steps(tmp_path) == (steps, None)
    table = adapter(DataConfig(name="packed", root=str(tmp_path))).rows
    for source, path in zip(cohort["path"].iloc[:2], table["path"], strict=True):
        made = preprocess(decode(Path(source).read_bytes(), size=192), steps)
        size = tuple(round(side * 96 / min(made.shape[:2])) for side in made.shape[1::-1])
        expected = np.asarray(Image.fromarray(made).resize(size, Image.Resampling.BILINEAR))
        pixels = decode(read_tfrecord_image(path))
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(float) - expected).mean() < 3
    with pytest.raises(PackError, match="pack of other rows or settings"):
        pack(cohort.iloc[:2], tmp_path, read, PackSettings(size=96), workers=1)
    with pytest.raises(InputError, match="'mask_background' needs a checkpoint"):
        PackSettings(steps=("mask_background",))
    with pytest.raises(InputError, match="crop_lesion cannot be part of a pack"):
        PackSettings(steps=("crop_lesion",), segmenter="drawing.ckpt")


def test_a_jpeg_that_needs_no_change_keeps_its_bytes(cohort: pd.DataFrame, folder: Path) -> None:
    table = adapter(DataConfig(name="packed", root=str(folder))).rows
    assert read_tfrecord_image(table["path"].iloc[3]) == Path(cohort["path"].iloc[3]).read_bytes()


def test_records_speak_the_public_schema(cohort: pd.DataFrame, folder: Path) -> None:
    table = read_records(sorted(folder.glob("*.tfrec"))).set_index("image_name")
    expected = cohort.set_index("image_id")
    names = {"age": "age_approx", "site": "anatom_site_general_challenge", "sex": "sex"}
    for ours, public in names.items():
        pd.testing.assert_series_equal(
            table[public].sort_index(), expected[ours].sort_index(),
            check_names=False, check_dtype=False, check_index_type=False,
        )  # fmt: skip


@given(patients=st.lists(st.integers(0, 12), min_size=1, max_size=60), limit=st.integers(1, 10))
def test_patients_never_span_shards(patients: list[int], limit: int) -> None:
    table = pd.DataFrame({"patient": patients})
    table["shard"] = assign_shards(table["patient"], limit)
    assert (table.groupby("patient")["shard"].nunique() == 1).all()
    assert sorted(table["shard"].unique()) == list(range(table["shard"].max() + 1))
    for _, rows in table.groupby("shard"):
        assert len(rows) <= limit or rows["patient"].nunique() == 1


def test_a_copy_is_verified(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)  # noqa: S607
    manifest = verify_pack(copy)
    assert (manifest.images, len(manifest.shards)) == (16, 3)
    name = manifest.files[1]
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(PackError, match=rf"{name}: missing or changed since it was packed"):
        verify_pack(copy)
    (copy / name).unlink()
    with pytest.raises(PackError, match=rf"{name}: missing"):
        verify_pack(copy)


def test_a_finished_pack_is_left_alone(cohort: pd.DataFrame, folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    pack(cohort, folder, read, SMALL, workers=1)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == before


def test_a_shard_that_no_manifest_knows_of_is_kept_where_it_is_whole(
    cohort: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    """As a driver of Spark that was killed leaves them."""
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    manifest = verify_pack(out)
    whole, damaged = (out / name for name in manifest.files[:2])
    manifest.shards = {manifest.files[2]: manifest.shards[manifest.files[2]]}
    manifest.save(out)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    before = whole.stat().st_mtime_ns
    pack(cohort, out, read, SMALL, workers=1)
    assert whole.stat().st_mtime_ns == before
    assert verify_pack(out) == verify_pack(folder)
    assert (out / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_another_pack_is_replaced_only_when_told(cohort: pd.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(cohort.iloc[:8], out, read, SMALL, workers=1)
    other = PackSettings(size=32, shard_images=100)
    with pytest.raises(PackError, match="contains a pack of other rows or settings: choose a new"):
        pack(cohort.iloc[:8], out, read, other)
    manifest = pack(cohort.iloc[:8], out, read, other, workers=1, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["cohort.csv", "manifest.json", "shard-00000-of-00001.tfrec",
         "shard-00000-of-00001.tfrec.names.json", "shard-00000-of-00001.tfrec.tfindex"]
    )  # fmt: skip
    assert manifest.settings == other.to_mapping()


SCRIPT = """
import sys, time
from pathlib import Path
from skinmm.config import DataConfig
from skinmm.data.cohorts.public import demo
from skinmm.data.pack import pack
from skinmm.data.packed import PackSettings

def read(path):
    time.sleep(0.1)
    return Path(path).read_bytes(), None

if __name__ == "__main__":
    rows = demo(DataConfig()).rows.iloc[:40]
    pack(rows, Path(sys.argv[1]), read, PackSettings(48, 95, 10), workers=2)
"""


def test_a_killed_pack_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """SIGKILL in the middle: no worker stays, no shard is written twice, the bytes are the same."""
    script, out, terminal = tmp_path / "run.py", tmp_path / "out", os.openpty()
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(skinmm.__file__).parents[1])}
    termios.tcsetwinsize(terminal[1], (24, 100))
    process = subprocess.Popen(command, stderr=terminal[1], env=environment)
    _wait(lambda: process.poll() is not None or _finished(out) >= 1)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shown = os.read(terminal[0], 100_000).decode()
    assert re.search(r"\d/40 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+( images/s|s/ images)", shown), shown
    assert len(workers) >= 2
    _wait(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    with pytest.raises(PackError, match=r"out: \d of 4 shards packed: run the same command again"):
        verify_pack(out)
    with pytest.raises(InputError, match=r"cohort\.csv"):
        adapter(DataConfig(name="packed", root=str(out)))

    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tfrec")}
    table, fresh = demo(DataConfig()).rows.iloc[:40], tmp_path / "fresh"
    for folder in (out, fresh):
        pack(table, folder, read, PackSettings(48, 95, 10), workers=1)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert verify_pack(out) == verify_pack(fresh)
    assert (out / "cohort.csv").read_text() == (fresh / "cohort.csv").read_text()
    assert not list(out.glob("*.part"))


def _finished(out: Path) -> int:
    manifest = load_manifest(out)
    return len(manifest.shards) if manifest else 0


def _children(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"path": None},
            r"1 of 16 rows have no image on disk: set data\.missing=drop .*ISIC_0000000",
        ),
        ({"target": "mel"}, r"a target other than 0 or 1: pack with data\.target=malignant"),
        ({"image_id": "ISIC_0000001"}, "repeat an image_id"),
    ],
)
def test_a_cohort_that_cannot_be_packed_is_refused(
    cohort: pd.DataFrame, tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    wrong = cohort.astype(object)
    for column, value in change.items():
        wrong.loc[wrong.index[0], column] = value
    with pytest.raises(PackError, match=message):
        pack(wrong, tmp_path / "out", read)
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_packed_is_named(cohort: pd.DataFrame, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(cohort["path"].iloc[5]).read_bytes()[:2000])
    paths = [str(broken), f"{tmp_path}/absent.jpg#frame=2"]
    for number, path in enumerate(paths):
        table = cohort.iloc[4:7].assign(path=[cohort["path"].iloc[4], path, path])
        with pytest.raises(PackError, match=rf"image ISIC_0000006 \({re.escape(path)}\): "):
            pack(table, tmp_path / str(number), read, SMALL, workers=1)


def die(path: str) -> tuple[bytes, int | None]:
    """What the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return path.encode(), None


def test_a_worker_that_dies_is_reported(cohort: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="a worker died, perhaps out of memory"):
        pack(cohort, tmp_path / "out", die, SMALL, workers=1)


def test_partial_files_of_killed_writers_are_removed(cohort: pd.DataFrame, tmp_path: Path) -> None:
    def deal(
        pending: Mapping[str, pd.DataFrame], out: Path, encoder: Encoder
    ) -> Iterator[tuple[str, Shard]]:
        """The first writer of each shard was killed."""
        for name, rows in pending.items():
            (out / f"{name}.0123.part").write_bytes(b"half a sha")
            yield name, write_shard(out / name, rows, partial(map, encoder))

    pack(cohort, tmp_path, read, SMALL, write_shards=deal)
    assert not [*tmp_path.glob("*.part")]


def test_a_folder_that_cannot_be_used_is_refused(cohort: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "download.part").write_text("mine too")
    with pytest.raises(
        PackError, match="contains files that are not a pack: choose a new or empty"
    ):
        pack(cohort, tmp_path, read)
    with pytest.raises(PackError, match="cannot be written: File exists"):
        pack(cohort, tmp_path / "notes.txt", read)
    with pytest.raises(PackError, match=r"no manifest\.json: name a folder that skinmm pack wrote"):
        verify_pack(tmp_path)
    for content in (
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "complete": true, "shards": {"a": 1}}',
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(PackError, match="not the manifest of a pack: choose another folder"):
            pack(cohort, tmp_path, read)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"quality": 101}, {"shard_images": 0}])
def test_settings_have_bounds(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(PackError, match=f"{name}={value}: must be between"):
        PackSettings(**wrong)
