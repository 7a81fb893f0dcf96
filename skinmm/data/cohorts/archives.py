"""Adapters of datasets whose lesions have several images: MILK10k, Derm7pt, MIDAS, ISIC archive."""

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.cohorts.tables import (
    CohortTable,
    attach_images,
    read_table,
    require_root,
    to_canonical,
)
from skinmm.data.cohorts.targets import name_iddx
from skinmm.data.lesions import parse_view
from skinmm.errors import InputError, list_words
from skinmm.images.finder import find_table
from skinmm.vocabulary import map_unique, parse_diagnosis, parse_site

_LICENCE: Final = "copyright_license"
_DERM7PT_PARTS: Final = {"train": None, "valid": "val", "test": "test"}
_DERM7PT: Final = {
    "basal cell carcinoma": "bcc",
    "melanoma": "mel",
    "nevus": "nv",
    "seborrheic keratosis": "sk",
}
"""Words of Derm7pt's diagnoses -> class of its paper; all others are `misc`."""


def milk10k(data: DataConfig) -> CohortTable:
    """Read the training set of MILK10k (ISIC 2025): eleven classes, two images per lesion.

    `data.columns` may name `skin_tone_class` and the scores of each image: `MONET_hair_clinical`,
    `MONET_hair_dermoscopic`, ... with `data.unit=lesion`, `MONET_hair` with `data.unit=image`. The
    supplement is not read: its columns are known only after the diagnosis.
    """
    root = require_root(data)
    file = find_table(root, "MILK10k_Training_Metadata.csv")
    table = read_table(file, ["lesion_id", "isic_id", "image_type"])
    truth_file = find_table(root, "MILK10k_Training_GroundTruth.csv")
    truth = read_table(truth_file, ["lesion_id", "MEL"]).set_index("lesion_id")
    marks = truth.apply(pd.to_numeric, errors="coerce") == 1
    if (wrong := marks.sum(axis=1) != 1).any():
        raise InputError(f"{truth_file}: lesion {wrong.idxmax()}: exactly one class must be 1")
    names = {name: parse_diagnosis(name) or str(name).lower() for name in marks}
    table["diagnosis"] = table["lesion_id"].map(marks.idxmax(axis=1).map(names))
    table["licence"] = table.get(_LICENCE)
    rows = to_canonical(table, file, data)
    folders = ("MILK10k_Training_Input", "images", "")
    cells = (table["lesion_id"] + "/" + table["isic_id"]).tolist()  # a folder for each lesion
    cohort = attach_images(rows, root, data.format, folders, cells=cells)
    if cohort.rows["path"].isna().all():
        cohort = attach_images(rows, root, data.format, folders)
    return replace(cohort, columns=tuple(map(str, table)))


def derm7pt(data: DataConfig) -> CohortTable:
    """Read Derm7pt (Kawahara et al. 2018): five classes, a clinical and a dermoscopic image.

    The published indexes fix training, validation and test. `data.columns` may name the criteria of
    the seven-point checklist (`pigment_network`, `streaks`, ...).
    """
    root = require_root(data)
    file = find_table(root, "meta/meta.csv")
    table = read_table(file, ["diagnosis", "clinic", "derm"])
    part = pd.Series(None, table.index, dtype=object)
    for name, fixed in _DERM7PT_PARTS.items():
        indexes = read_table(file.with_name(f"{name}_indexes.csv"), ["indexes"])["indexes"]
        part[pd.to_numeric(indexes)] = fixed

    def name_class(text: str) -> str:
        return next((name for word, name in _DERM7PT.items() if word in text.lower()), "misc")

    table["diagnosis"] = map_unique(table["diagnosis"], name_class)
    table = table.assign(part=part, lesion_id=[f"case {row}" for row in range(len(table))])
    views = ("derm", "clinic")
    images = pd.concat([table.assign(image=table[name], view=name) for name in views])
    images = images.drop(columns=[*views]).sort_index(kind="stable").reset_index(drop=True)
    rows = to_canonical(images, file, data)
    cohort = attach_images(rows, root, data.format, ("images", ""), cells=images["image"].tolist())
    return replace(cohort, columns=tuple(map(str, table)))


def midas(data: DataConfig) -> CohortTable:
    """Read MRA-MIDAS (Stanford AIMI): dermoscopic images, photographs from 6 inches and 1 foot.

    The target follows from `midas_path` (`malignant-...`, `benign-...`; others have none), where
    actinic keratosis is malignant. Images of one record, location and size are a lesion.
    Controls are left out. `data.columns` may name `length_mm`, `width_mm`, `midas_fitzpatrick`, ...
    """
    root = require_root(data)
    files = [find_table(root, "release_midas.csv"), root / "release_midas.xlsx"]
    file = next((file for file in files if file.is_file()), files[1])
    table = read_table(file, ["midas_record_id", "midas_file_name", "midas_path", "midas_distance"])
    table = table.rename(columns={"length_(mm)": "length_mm", "width_(mm)": "width_mm"})
    is_control = table.get("midas_iscontrol", pd.Series("", table.index)).str.lower() == "yes"
    notes = (f"{int(is_control.sum())} images of controls left out",)
    table = table[~is_control].reset_index(drop=True)
    paths = table["midas_path"].fillna("").str.lower().str.split("-", n=1)
    kinds, words = (paths.str[part].fillna("").str.strip() for part in (0, 1))
    table["target"] = kinds.map({"benign": "0", "malignant": "1"})
    named = map_unique(words, parse_diagnosis)
    table["diagnosis"] = named.where(named.notna(), kinds + " " + words)
    table.loc[table["target"].isna() | (words == ""), "diagnosis"] = None
    empty = pd.Series(None, table.index, dtype=object)
    renamed = {"midas_age": "age", "midas_gender": "sex", "midas_location": "site"}
    for public, name in renamed.items():
        table[name] = table.get(public, empty)
    keys = [table.get(n, empty).fillna("").astype(str) for n in ("site", "length_mm", "width_mm")]
    table["lesion_id"] = pd.concat([table["midas_record_id"], *keys], axis=1).agg(" ".join, axis=1)
    table["site"] = map_unique(table["site"], _find_site)
    table["image_id"], table["patient_id"] = table["midas_file_name"], table["midas_record_id"]
    table["view"] = map_unique(table["midas_distance"], parse_view)  # none of virtual visits
    rows = to_canonical(table.drop(columns=[*renamed], errors="ignore"), file, data)
    cohort = attach_images(rows, root, data.format, ("images", ""))
    return replace(cohort, columns=tuple(map(str, table)), notes=notes)


def _find_site(text: str) -> str | None:
    """Return the site named by the last recognised word: `r upper back` is the torso."""
    return next(filter(None, map(parse_site, [text, *reversed(text.split())])), None)


def isic_archive(data: DataConfig) -> CohortTable:
    """Read `metadata.csv` and the images of a download by `isic-cli`.

    The target follows from `diagnosis_1` (Benign, Malignant; other rows have none), the diagnosis
    from the path `diagnosis_1`, ..., `diagnosis_5`. Images that are no photographs are left out.
    """
    root = require_root(data)
    file = find_table(root, "metadata.csv")
    table = read_table(file, ["isic_id"])
    levels = [name for number in range(1, 6) if (name := f"diagnosis_{number}") in table]
    paths = table[levels].fillna("").agg("::".join, axis=1).str.lower()
    table["diagnosis"] = map_unique(
        paths, lambda path: name_iddx(path) if path.strip(":") else None
    )
    if "diagnosis_1" in table:
        table["target"] = table["diagnosis_1"].str.lower().map({"benign": "0", "malignant": "1"})
    sites = [name for name in map(str, table) if name.startswith("anatom_site")]
    site = pd.Series(None, table.index, dtype=object)
    for column in sites:
        site = site.where(site.notna(), map_unique(table[column], parse_site))
    table = table.drop(columns=sites).assign(site=site.where(site.notna(), None))
    table = table.rename(columns={"pixels_x": "width", "pixels_y": "height"})
    table["licence"] = table.get(_LICENCE)
    notes: tuple[str, ...] = ()
    if "image_type" in table:
        kinds = table["image_type"]
        is_other = kinds.notna() & map_unique(kinds, parse_view).isna()
        if is_other.any():
            words = list_words(Counter(kinds[is_other]))
            notes = (f"{int(is_other.sum())} images of other types left out: {words}",)
            table = table[~is_other].reset_index(drop=True)
    cohort = attach_images(to_canonical(table, file, data), root, data.format, ("images", ""))
    return replace(cohort, columns=tuple(map(str, table)), notes=notes)


def select_licences(cohort: CohortTable, data: DataConfig) -> CohortTable:
    """Return the images with one of the licences in `data.licences`; all if it is empty."""
    if not data.licences:
        return cohort
    rows = cohort.rows
    if "licence" not in rows or rows["licence"].isna().all():
        raise InputError(f"data.licences: data={data.name} states no licences; remove the setting")
    counts: Counter[Any] = Counter(rows["licence"].fillna("none stated"))
    if absent := {*data.licences} - {*counts}:
        raise InputError(
            f"data.licences: no image with {', '.join(sorted(absent))}; the images have "
            f"{list_words(counts)}"
        )
    is_allowed = rows["licence"].isin(data.licences)
    left_out = Counter({name: n for name, n in counts.items() if name not in data.licences})
    note = f"{int((~is_allowed).sum())} images with other licences left out: {list_words(left_out)}"
    rows = rows[is_allowed].reset_index(drop=True)
    return replace(cohort, rows=rows, notes=(*cohort.notes, *([note] if left_out else [])))
