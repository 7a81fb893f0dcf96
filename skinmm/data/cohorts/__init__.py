"""Load any dataset as one canonical table with targets, images and lesion masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import Component, DataConfig, ExtraCohort, build_component, check_component
from skinmm.config.registry import Registry, find_plugins
from skinmm.data.bucket import is_in_bucket
from skinmm.data.cohorts import archives, packs, public, user
from skinmm.data.cohorts.tables import (
    CANONICAL,
    MASK_FOLDER,
    CohortTable,
    exclude_rows,
    require_root,
)
from skinmm.data.cohorts.targets import BINARY, add_targets, select_malignant, sort_key
from skinmm.data.columns import check_columns, describe_columns, require_same_units
from skinmm.data.relative import add_relative
from skinmm.data.splits import hold_out
from skinmm.errors import InputError, format_count
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images.finder import (
    ImageFinder,
    describe_folders,
    describe_other_pictures,
    find_folders,
    list_files,
)
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.source import fill_from_headers
from skinmm.vocabulary import (
    map_unique,
    parse_diagnosis,
    resolve_patients,
)

MASK_FOLDERS: Final = (
    *(MASK_FOLDER, "HAM10000_segmentations_lesion_tschandl"),
    *(f"ISIC2018_Task1_{part}_GroundTruth" for part in ("Training", "Validation", "Test")),
)
"""Folders of masks, of any dataset, under its root."""
MASK_SUFFIXES: Final = (".tif", ".tiff", ".gif", ".bmp", ".png")
MASK_ENDING: Final = "_segmentation"  # optional, after the name of the image, as in ISIC
Adapter = Callable[..., CohortTable]
"""`adapter(data, **data.args)` -> canonical rows; its keyword arguments are its options."""

ADAPTERS: Final[Registry[Adapter]] = Registry(
    "data",
    demo=public.demo,
    siim_isic=public.siim_isic,
    ham10000=public.ham10000,
    isic_2017=public.isic_2017,
    isic_2018=public.isic_2018,
    isic_2019=public.isic_2019,
    isic_2024=public.isic_2024,
    pad_ufes_20=public.pad_ufes_20,
    milk10k=archives.milk10k,
    derm7pt=archives.derm7pt,
    midas=archives.midas,
    isic_archive=archives.isic_archive,
    image_folder=user.image_folder,
    csv=user.csv,
    packed=packs.packed,
    tfrecord=packs.tfrecord,
)

_ARGS: Final = ("test_fraction", "exclude")
"""Entries of `data.args` that every adapter has."""


def verify_cohort(data: DataConfig) -> None:
    """Check the names of adapters, their options and folders before anything is read."""
    args = {name: value for name, value in data.args.items() if name not in _ARGS}
    check_component(ADAPTERS, "data", Component(data.name, args), context=("data",))
    has_folder = data.name not in ("demo", *find_plugins("data"))  # may have data in their package
    if has_folder and not is_in_bucket(data):
        require_root(data)
    for extra in data.extra:
        verify_cohort(_to_data_config(data, extra))


def load_cohort(data: DataConfig, *, labelled: bool = True) -> CohortTable:
    """Read a cohort, add the extra ones, and give every row its target.

    Args:
        data: which cohort; `args.test_fraction` holds out a test part of whole patients,
            `args.exclude` names a table of rows to leave out, and the other options go to the
            adapter.
        labelled: whether targets are required; if not, a cohort without targets gets 0 everywhere.

    Returns:
        Canonical rows, numbered from 0; `path` is None where no image was found. They have a column
        `part` if parts are fixed: by the data, by holding out, or `train` for rows of `data.extra`;
        and those of `data.relative`.
    """
    args = dict(data.args)
    fraction, excluded = (args.pop(name, None) for name in _ARGS)
    cohort = _read(replace(data, args=args))
    for extra in data.extra:
        cohort = _add_extra(cohort, data, extra)
    if excluded is not None:
        cohort = exclude_rows(cohort, excluded)
    measured = [name for name in data.columns if name in MEASUREMENTS and name not in cohort.rows]
    if measured and not data.segmenter:
        raise InputError(
            f"data.columns: '{measured[0]}' is measured on the image: set data.segmenter=CKPT, a "
            "checkpoint of task=segmentation that finds the lesion"
        )
    present = [*cohort.rows.columns, *(MEASUREMENTS if data.segmenter else ())]
    check_columns(data.columns, present, cohort.columns)
    notes = (*cohort.notes, *describe_columns(cohort, data))
    cohort = replace(cohort, rows=add_relative(cohort.rows, data), notes=notes)
    try:
        rows = add_targets(cohort, data)
    except InputError:
        if labelled:
            raise
        rows = cohort.rows.assign(target=0)
    if fraction is not None:
        rows = hold_out(rows, fraction, data.split_seed)
    return replace(cohort, rows=rows)


def list_classes(table: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Return the classes in the order of the logits: the vocabulary's, then others by name."""
    if data.target == "malignant":
        return BINARY
    return tuple(sorted(table["target"].unique(), key=sort_key))


def list_positive_classes(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """Return the classes that count as malignant: `data.positive`, or else the vocabulary's."""
    return BINARY[1:] if data.target == "malignant" else select_malignant(classes, data)


def _call_adapter(data: DataConfig) -> CohortTable:
    """Call the adapter of a cohort; name it in exceptions of a user's adapter."""
    component = Component(data.name, data.args)
    check_component(ADAPTERS, "data", component, context=("data",))
    if ADAPTERS[data.name].__module__.startswith("skinmm."):  # checks the values of its arguments
        return build_component(ADAPTERS, "data", component, data=data)
    try:
        return ADAPTERS[data.name](data=data, **data.args)
    except (InputError, OSError):
        raise
    except Exception as error:
        error.add_note(f"in the adapter of data={data.name}")
        raise


def _read(data: DataConfig) -> CohortTable:
    """Read one cohort; fill unknown patients with the lesion, or else the image."""
    cohort = _call_adapter(data)
    if absent := [name for name in CANONICAL if name not in cohort.rows]:
        raise InputError(
            f"the adapter of data={data.name} returned rows without {', '.join(absent)}; it has to "
            f"return the columns {', '.join(CANONICAL)}, as `to_canonical` does"
        )
    cohort = archives.select_licences(cohort, data)
    rows = cohort.rows if "cohort" in cohort.rows else cohort.rows.assign(cohort=data.name)
    rows = fill_from_headers(rows).reset_index(drop=True)
    if rows["source"].isna().all():  # the whole table counts as one centre
        rows["source"] = rows["cohort"]
    return replace(cohort, rows=rows.assign(patient_id=resolve_patients(rows)))


def _add_extra(cohort: CohortTable, data: DataConfig, extra: ExtraCohort) -> CohortTable:
    """Add another cohort's rows for training only, except images that the cohort already has."""
    rows, other = cohort.rows, _read(_to_data_config(data, extra))
    require_same_units(cohort, other, (data.name, extra.name))
    added = other.rows[~other.rows["image_id"].isin(rows["image_id"])].assign(part="train")
    cohorts = set(rows["cohort"])

    def make_unique(name: str) -> str:
        names = chain([name], (f"{name} ({number})" for number in count(2)))
        return next(candidate for candidate in names if candidate not in cohorts)

    is_unnamed = added["source"] == added["cohort"]  # a centre may occur in several cohorts
    added["cohort"] = map_unique(added["cohort"], make_unique)
    added["source"] = added["source"].mask(is_unnamed, added["cohort"])
    present = rows["diagnosis"].dropna().unique()
    spelling = {parse_diagnosis(name): name for name in present}
    spelling.pop(None, None)  # words outside the vocabulary are classes of their own
    added["diagnosis"] = added["diagnosis"].map(
        lambda name: name if name in present else spelling.get(parse_diagnosis(name), name)
    )
    rows = pd.concat([rows, added], ignore_index=True)
    searched = {make_unique(name): folders for name, folders in other.searched.items()}
    return replace(cohort, rows=rows, searched={**cohort.searched, **searched})


def _to_data_config(data: DataConfig, extra: ExtraCohort) -> DataConfig:
    if extra.name in ADAPTERS and extra.name != "demo" and not extra.root:
        example = f"data.extra=[{{name:{extra.name},root:DIR}}]"
        raise InputError(f"data.extra: {extra.name} needs its own root, {example}")
    return replace(data, name=extra.name, root=extra.root, format="auto", args={}, extra=[])


def require_images(cohort: CohortTable, missing: str, *, needed: bool = True) -> CohortTable:
    """Return the rows whose image was found, and a note of the rows left out.

    Args:
        cohort: result of `load_cohort`.
        missing: `drop` leaves out rows without an image, `error` refuses them.
        needed: whether images are used. If not, `drop` leaves out the same rows, so that models
            with and without images are comparable, unless no row has an image.
    """
    rows = cohort.rows
    has_image = rows["path"].notna()
    if has_image.all() or (not needed and (missing == "error" or not has_image.any())):
        return cohort
    if missing == "drop" and has_image.any():
        names = ", ".join(rows["image_id"][~has_image][:3])
        count = f"{(~has_image).sum():,} of {format_count(len(rows), 'row')}"
        note = f"data.missing=drop leaves out {count}, which have no image, e.g. {names}"
        rows = rows[has_image].reset_index(drop=True)
        return replace(cohort, rows=rows, notes=(*cohort.notes, note))
    problem = describe_missing_images(rows, cohort.searched)
    advice = "; set data.missing=drop to leave them out" if has_image.any() else ""
    raise InputError(f"{problem}{advice}")


def describe_missing_images(
    rows: pd.DataFrame, searched: Mapping[str, Sequence[Path]]
) -> str | None:
    """Describe how many images were not found, with examples; None if all were found.

    `searched` is that of the table; only the folders of cohorts with missing images are listed.
    """
    missing = rows[rows["path"].isna()]
    if missing.empty:
        return None
    searches = dict.fromkeys(
        tuple(searched[cohort]) for cohort in missing["cohort"] if cohort in searched
    )
    folders = [folder for _, *folders in searches for folder in folders]
    files = list_files(folders)
    finder = ImageFinder(files, suffixes=IMAGE_SUFFIXES)
    similar = {name: finder.find_similar(name) for name in missing["image_id"][:3]}
    examples = (f"{name} (there is {file})" if file else name for name, file in similar.items())
    notes = [
        f"{len(missing)} of {len(rows)} images are not on disk, e.g. {', '.join(examples)}",
        f"searched in {', '.join(map(str, folders))}" if folders else "",
        *(describe_folders(root) for root, *_ in searches),
        describe_other_pictures(files),
    ]
    return "; ".join(filter(None, notes))


def require_masks(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the rows with a mask (column `mask`); `data.missing=error` refuses others."""
    folders = _list_mask_folders(data)
    files = map(Path, list_files(folders))
    drawn = [file for file in files if file.suffix.lower() in MASK_SUFFIXES]
    masks: dict[str, str] = {}
    for file in drawn:
        name = file.stem.removesuffix(MASK_ENDING)
        if masks.setdefault(name, str(file)) != str(file):
            raise InputError(f"{name} has two masks, {masks[name]} and {file}; remove one")
    paths = [masks.get(name) for name in rows["image_id"]]
    rows = rows.assign(mask=pd.Series(paths, rows.index, dtype=object))
    has_mask = rows["mask"].notna()
    if has_mask.all() or (data.missing == "drop" and has_mask.any()):
        return rows[has_mask].reset_index(drop=True)
    names = ", ".join(rows.loc[~has_mask, "image_id"].iloc[:3])
    searched = ", ".join(map(str, folders)) or f"none of {', '.join(MASK_FOLDERS)}: all are absent"
    advice = "leave them out with data.missing=drop" if has_mask.any() else "set data.masks=DIR"
    raise InputError(
        f"{int((~has_mask).sum())} of {len(rows)} images have no mask (NAME.png or "
        f"NAME{MASK_ENDING}.png), e.g. {names}; searched in {searched}; {advice}"
    )


def _list_mask_folders(data: DataConfig) -> list[Path]:
    if data.masks is None:  # the demo cohort has no root
        return find_folders(require_root(data), MASK_FOLDERS) if data.root else []
    folder = Path(data.masks).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.masks={data.masks}: no such folder")
    return [folder]
