"""Load any dataset as one canonical table with targets, images and lesion masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import Component, DataConfig, ExtraCohort, build_component, check_component
from skinmm.data.cohorts import public, user
from skinmm.data.cohorts.tables import MASK_FOLDER, CohortTable, require_root
from skinmm.data.columns import check_columns, describe_columns, require_same_units
from skinmm.data.splits import hold_out
from skinmm.errors import InputError, warn
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
    CLASSES,
    MALIGNANT,
    map_unique,
    parse_diagnosis,
    resolve_patients,
)

BINARY: Final = ("benign", "malignant")
MASK_FOLDERS: Final = (
    *(MASK_FOLDER, "HAM10000_segmentations_lesion_tschandl"),
    *(f"ISIC2018_Task1_{part}_GroundTruth" for part in ("Training", "Validation", "Test")),
)
"""Folders of masks, of any dataset, under its root."""
MASK_SUFFIXES: Final = (".tif", ".tiff", ".gif", ".bmp", ".png")
MASK_ENDING: Final = "_segmentation"  # optional, after the name of the image, as in ISIC
Adapter = Callable[..., CohortTable]
"""`adapter(data, **data.args)` -> canonical rows; its keyword arguments are its options."""

ADAPTERS: Final[dict[str, Adapter]] = {
    "demo": public.demo,
    "siim_isic": public.siim_isic,
    "ham10000": public.ham10000,
    "isic_2017": public.isic_2017,
    "isic_2018": public.isic_2018,
    "isic_2019": public.isic_2019,
    "isic_2024": public.isic_2024,
    "pad_ufes_20": public.pad_ufes_20,
    "image_folder": user.image_folder,
    "csv": user.csv,
    "packed": user.packed,
    "tfrecord": user.tfrecord,
}


def verify_cohort(data: DataConfig) -> None:
    """Check the names of adapters, their options and folders before anything is read."""
    args = {name: value for name, value in data.args.items() if name != "test_fraction"}
    check_component(ADAPTERS, "data", Component(data.name, args), context=("data",))
    if data.name != "demo":  # part of the package
        require_root(data)
    for extra in data.extra:
        verify_cohort(_to_data_config(data, extra))


def load_cohort(data: DataConfig, *, labelled: bool = True) -> CohortTable:
    """Read a cohort, add the extra ones, and give every row its target.

    Args:
        data: which cohort; `args.test_fraction` holds out a test part of whole patients, the other
            options go to the adapter.
        labelled: whether targets are required; if not, a cohort without targets gets 0 everywhere.

    Returns:
        Canonical rows, numbered from 0; `path` is None where no image was found. They have a column
        `part` if parts are fixed: by the data, by holding out, or `train` for rows of `data.extra`.
    """
    args = dict(data.args)
    fraction = args.pop("test_fraction", None)
    cohort = _read(replace(data, args=args))
    for extra in data.extra:
        cohort = _add_extra(cohort, data, extra)
    measured = [name for name in data.columns if name in MEASUREMENTS and name not in cohort.rows]
    if measured and not data.segmenter:
        raise InputError(
            f"data.columns: '{measured[0]}' is measured on the image: set data.segmenter=CKPT, a "
            "checkpoint of task=segmentation that finds the lesion"
        )
    present = [*cohort.rows.columns, *(MEASUREMENTS if data.segmenter else ())]
    check_columns(data.columns, present, cohort.columns)
    cohort = replace(cohort, notes=(*cohort.notes, *describe_columns(cohort, data)))
    try:
        rows = _add_targets(cohort, data)
    except InputError:
        if labelled:
            raise
        rows = cohort.rows.assign(target=0)
    if fraction is not None:
        rows = hold_out(rows, fraction, data.split_seed)
    return replace(cohort, rows=rows)


def list_classes(table: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Return the classes in logit order: first those of the vocabulary, then others by name."""
    if data.target == "malignant":
        return BINARY
    return tuple(sorted(table["target"].unique(), key=_sort_key))


def list_positive_classes(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """Return the classes that count as malignant: `data.positive`, or else the vocabulary's."""
    return BINARY[1:] if data.target == "malignant" else _select_malignant(classes, data)


def _read(data: DataConfig) -> CohortTable:
    """Read one cohort; an unknown patient is replaced by the lesion, or else the image."""
    cohort = build_component(ADAPTERS, "data", Component(data.name, data.args), data=data)
    rows = fill_from_headers(cohort.rows).reset_index(drop=True)
    return replace(cohort, rows=rows.assign(patient_id=resolve_patients(rows)))


def _add_extra(cohort: CohortTable, data: DataConfig, extra: ExtraCohort) -> CohortTable:
    """Add another cohort's rows for training only, except images that are present already."""
    rows, other = cohort.rows, _read(_to_data_config(data, extra))
    require_same_units(cohort, other, (data.name, extra.name))
    added = other.rows[~other.rows["image_id"].isin(rows["image_id"])].assign(part="train")
    sources = set(rows["source"])

    def make_unique(name: str) -> str:
        names = chain([name], (f"{name} ({number})" for number in count(2)))
        return next(candidate for candidate in names if candidate not in sources)

    added["source"] = map_unique(added["source"], make_unique)
    present = rows["diagnosis"].dropna().unique()
    spelling = {parse_diagnosis(name): name for name in present}
    spelling.pop(None, None)  # words outside the vocabulary are classes of their own
    added["diagnosis"] = added["diagnosis"].map(
        lambda name: name if name in present else spelling.get(parse_diagnosis(name), name)
    )
    rows = pd.concat([rows, added], ignore_index=True)
    searched = {make_unique(source): folders for source, folders in other.searched.items()}
    return replace(cohort, rows=rows, searched={**cohort.searched, **searched})


def _to_data_config(data: DataConfig, extra: ExtraCohort) -> DataConfig:
    if extra.name in ADAPTERS and extra.name != "demo" and not extra.root:
        example = f"data.extra=[{{name:{extra.name},root:DIR}}]"
        raise InputError(f"data.extra: {extra.name} needs a root of its own, {example}")
    return replace(data, name=extra.name, root=extra.root, format="auto", args={}, extra=[])


def _add_targets(cohort: CohortTable, data: DataConfig) -> pd.DataFrame:
    """Give every row its target: 0/1 if `data.target=malignant`, otherwise the class name.

    Malignancy is the cohort's 0/1 column if it has one, otherwise it follows from the diagnosis;
    with `data.positive` the diagnosis takes precedence.
    """
    rows = cohort.rows
    diagnosis, target = rows["diagnosis"], rows["target"]
    if data.target == "diagnosis":
        target = diagnosis.astype(object)
    else:
        derived = diagnosis.notna() & (target.isna() | bool(data.positive))
        positive = _select_malignant(diagnosis[derived].unique().tolist(), data)
        target = target.where(~derived, diagnosis.isin(positive).astype("float64"))
    unlabelled = target.isna()
    needed = ("diagnosis",) if data.target == "diagnosis" else ("target", "diagnosis")
    if unlabelled.all() and set(needed) <= set(cohort.unlabelled):
        options = " or ".join(f"+data.args.columns.{name}=COLUMN" for name in needed)
        raise InputError(
            f"no column {' or '.join(needed)} in {cohort.description}; name it: {options}"
        )
    if unlabelled.any():
        names = ", ".join(rows.loc[unlabelled, "image_id"].iloc[:3])
        message = f"{int(unlabelled.sum())} rows have no {data.target} target, e.g. {names}"
        if data.missing != "drop" or unlabelled.all():
            raise InputError(f"{message}; data.missing=drop leaves them out")
        warn(f"{message}: left out")
        rows, target = rows[~unlabelled].reset_index(drop=True), target[~unlabelled]
        target = target.reset_index(drop=True)
    if target.nunique() < 2:  # noqa: PLR2004  a classifier needs two classes
        raise InputError(
            f"data={data.name}: every row has the same target, {target.iloc[0]}; two are needed: "
            "check data.positive and data.target"
        )
    return rows.assign(target=target if data.target == "diagnosis" else target.astype("int64"))


def _select_malignant(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    if not classes:
        return ()
    diagnoses = {name: parse_diagnosis(name) for name in classes}
    available = ", ".join(sorted(classes, key=_sort_key))
    if data.positive:
        return _match_classes(diagnoses, data.positive, available)
    unclear = [name for name in classes if diagnoses[name] is None and name.lower() not in BINARY]
    malignant = (*MALIGNANT, BINARY[1])
    chosen = tuple(name for name in classes if (diagnoses[name] or name.lower()) in malignant)
    if unclear or not chosen:
        which = f"'{unclear[0]}' is" if unclear else "one of them is"
        raise InputError(
            f"cannot determine whether {which} malignant: set data.positive=[...] from {available}"
        )
    return chosen


def _match_classes(
    diagnoses: dict[str, str | None], positive: Sequence[str], available: str
) -> tuple[str, ...]:
    """Match class names exactly, or as synonyms of the same class of the vocabulary."""
    chosen: set[str] = set()
    for word in positive:
        diagnosis = parse_diagnosis(word)
        if diagnosis is None and word not in diagnoses:
            raise InputError(f"data.positive: no class '{word}'; the classes are {available}")
        synonyms = (name for name, value in diagnoses.items() if value and value == diagnosis)
        chosen.update([word] if word in diagnoses else synonyms)
    if not chosen:
        raise InputError(
            f"data.positive: none of {', '.join(positive)} is among the classes {available}"
        )
    return tuple(name for name in diagnoses if name in chosen)


def _sort_key(name: str) -> tuple[int, str]:
    diagnosis = parse_diagnosis(name)
    return (CLASSES.index(diagnosis) if diagnosis else len(CLASSES), name)


def require_images(cohort: CohortTable, missing: str, *, needed: bool = True) -> pd.DataFrame:
    """Return the rows whose image was found.

    Args:
        cohort: result of `load_cohort`.
        missing: `drop` leaves out rows without an image, `error` refuses them.
        needed: whether images are used. If not, `drop` leaves out the same rows, so that models
            with and without images are comparable, unless no row has an image.
    """
    rows = cohort.rows
    has_image = rows["path"].notna()
    if not needed and (missing == "error" or not has_image.any()):
        return rows
    if has_image.all() or (missing == "drop" and has_image.any()):
        return rows[has_image].reset_index(drop=True)
    problem = describe_missing_images(rows, cohort.searched)
    advice = "; set data.missing=drop to leave them out" if has_image.any() else ""
    raise InputError(f"{problem}{advice}")


def describe_missing_images(
    rows: pd.DataFrame, searched: Mapping[str, Sequence[Path]]
) -> str | None:
    """Describe how many images were not found, with examples; None if all were found.

    `searched` is that of the cohort; only the folders of sources with missing images are listed.
    """
    missing = rows[rows["path"].isna()]
    if missing.empty:
        return None
    searches = dict.fromkeys(
        tuple(searched[source]) for source in missing["source"] if source in searched
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
    """Return the rows that have a mask, with its path in the column `mask`.

    `data.missing=error` refuses rows without a mask.
    """
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
