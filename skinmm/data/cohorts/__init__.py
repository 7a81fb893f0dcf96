"""Load any dataset as one canonical table with targets; each adapter has a function and a line."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, Final

import pandas as pd

from skinmm.config import Component, DataConfig, ExtraCohort, build_component, check_component
from skinmm.data.cohorts.find_images import (
    attach_masks,
    describe_missing_images,
    require_images,
    require_masks,
    require_root,
)
from skinmm.data.cohorts.public import (
    demo,
    ham10000,
    isic_2017,
    isic_2018,
    isic_2019,
    isic_2024,
    pad_ufes_20,
    siim_isic,
)
from skinmm.data.cohorts.tables import CohortTable
from skinmm.data.cohorts.user import csv, image_folder, packed, tfrecord
from skinmm.data.record import check_columns
from skinmm.data.splits import hold_out
from skinmm.errors import InputError
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.source import fill_from_headers
from skinmm.vocabulary import CLASSES, MALIGNANT, map_unique, parse_diagnosis, resolve_patients

__all__ = [
    "ADAPTERS",
    "Adapter",
    "CohortTable",
    "attach_masks",
    "describe_missing_images",
    "list_classes",
    "list_positive_classes",
    "load_cohort",
    "require_images",
    "require_masks",
    "verify_cohort",
]

BINARY: Final = ("benign", "malignant")
_MALIGNANT_NAMES: Final = frozenset((*MALIGNANT, BINARY[1]))
Adapter = Callable[..., CohortTable]
"""`adapter(data, **data.args)` -> canonical rows; its keyword arguments are its options."""

ADAPTERS: Final[dict[str, Adapter]] = {
    "demo": demo,
    "siim_isic": siim_isic,
    "ham10000": ham10000,
    "isic_2017": isic_2017,
    "isic_2018": isic_2018,
    "isic_2019": isic_2019,
    "isic_2024": isic_2024,
    "pad_ufes_20": pad_ufes_20,
    "image_folder": image_folder,
    "csv": csv,
    "packed": packed,
    "tfrecord": tfrecord,
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

    Raises:
        InputError: a folder, table, column, cell or option that cannot be used.
    """
    args = dict(data.args)
    fraction = args.pop("test_fraction", None)
    cohort = _read(replace(data, args=args))
    for extra in data.extra:
        cohort = _add_extra(cohort, data, extra)
    check_columns(data.columns, [*cohort.rows.columns, *_list_measurable(cohort.rows, data)])
    try:
        rows = _add_targets(cohort, data)
    except InputError:
        if labelled:
            raise
        rows = cohort.rows.assign(target=0)
    if fraction is not None:
        rows = hold_out(rows, _to_fraction(fraction), data.split_seed)
    return replace(cohort, rows=rows)


def list_classes(table: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Return the classes in the order of the logits: the vocabulary's, then others by name."""
    if data.target == "malignant":
        return BINARY
    return tuple(sorted(table["target"].unique(), key=_sort_key))


def list_positive_classes(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """Return the classes that count as malignant: `data.positive`, or those of the vocabulary.

    Raises:
        InputError: `data.positive` matches no class, or is empty and a class is not in the
            vocabulary.
    """
    return BINARY[1:] if data.target == "malignant" else _select_malignant(classes, data)


def _list_measurable(rows: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Return the columns that `skinmm.data.lesion_finder` can measure on the images.

    Raises:
        InputError: such a column is named, missing from the table, and `data.segmenter` is not set.
    """
    missing = [name for name in data.columns if name in MEASUREMENTS and name not in rows]
    if missing and not data.segmenter:
        raise InputError(
            f"data.columns: '{missing[0]}' is measured on the image: set data.segmenter=CKPT, a "
            "checkpoint of task=segmentation that finds the lesion"
        )
    return MEASUREMENTS if data.segmenter else ()


def _to_fraction(fraction: Any) -> float:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise InputError(f"+data.args.test_fraction={fraction}: must be a number")
    return float(fraction)


def _read(data: DataConfig) -> CohortTable:
    """Read one cohort; an unknown patient is replaced by the lesion, or else the image."""
    cohort = build_component(ADAPTERS, "data", Component(data.name, data.args), data=data)
    rows = fill_from_headers(cohort.rows).reset_index(drop=True)
    return replace(cohort, rows=rows.assign(patient_id=resolve_patients(rows)))


def _add_extra(cohort: CohortTable, data: DataConfig, extra: ExtraCohort) -> CohortTable:
    """Add another cohort's rows for training only, except images that are present already."""
    rows, other = cohort.rows, _read(_to_data_config(data, extra))
    added = other.rows[~other.rows["image_id"].isin(rows["image_id"])].assign(part="train")
    sources = set(rows["source"])
    added["source"] = map_unique(added["source"], lambda name: _make_unique(name, sources))
    spelling = {parse_diagnosis(name): name for name in rows["diagnosis"].dropna().unique()}
    added["diagnosis"] = added["diagnosis"].map(
        lambda name: spelling.get(parse_diagnosis(name), name)
    )
    return replace(
        cohort,
        rows=pd.concat([rows, added], ignore_index=True),
        searched=(*cohort.searched, *other.searched),
    )


def _to_data_config(data: DataConfig, extra: ExtraCohort) -> DataConfig:
    if extra.name in ADAPTERS and extra.name != "demo" and not extra.root:
        example = f"data.extra=[{{name:{extra.name},root:DIR}}]"
        raise InputError(f"data.extra: {extra.name} needs a root of its own, {example}")
    return replace(data, name=extra.name, root=extra.root, format="auto", args={}, extra=[])


def _make_unique(name: str, taken: Collection[str]) -> str:
    """Return a cohort's name, with a number if another cohort has the same name."""
    names = chain([name], (f"{name} ({number})" for number in count(2)))
    return next(candidate for candidate in names if candidate not in taken)


def _add_targets(cohort: CohortTable, data: DataConfig) -> pd.DataFrame:
    """Give every row its target: 0/1 if `data.target=malignant`, otherwise the class name.

    Malignancy is the cohort's 0/1 column if it has one, otherwise it follows from the diagnosis;
    with `data.positive` the diagnosis takes precedence.

    Raises:
        InputError: a row without target, a single class, or a class of unknown malignancy.
    """
    rows = cohort.rows
    diagnosis, given = rows["diagnosis"], rows["target"]
    if data.target == "diagnosis":
        target = diagnosis.astype(object)
    else:
        derived = diagnosis.notna() & (given.isna() | bool(data.positive))
        positive = _select_malignant(diagnosis[derived].unique().tolist(), data)
        target = given.where(~derived, diagnosis.isin(positive).astype("float64"))
    unlabelled = target.isna()
    needed = ("diagnosis",) if data.target == "diagnosis" else ("target", "diagnosis")
    if unlabelled.all() and set(needed) <= set(cohort.unlabelled):
        options = " or ".join(f"+data.args.columns.{name}=COLUMN" for name in needed)
        columns = " or ".join(needed)
        raise InputError(f"no column {columns} in {cohort.description}; name it: {options}")
    if unlabelled.any():
        names = ", ".join(rows.loc[unlabelled, "image_id"].iloc[:3])
        raise InputError(f"{int(unlabelled.sum())} rows have no {data.target} target, e.g. {names}")
    if target.nunique() < 2:  # noqa: PLR2004  a classifier needs two classes
        raise InputError(
            f"data={data.name}: every row has the same target, {target.iloc[0]}; two are needed"
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
    chosen = tuple(n for n in classes if (diagnoses[n] or n.lower()) in _MALIGNANT_NAMES)
    if unclear or not chosen:
        which = f"'{unclear[0]}' is" if unclear else "one of them is"
        raise InputError(
            f"cannot determine whether {which} malignant: set data.positive=[...] from {available}"
        )
    return chosen


def _match_classes(
    diagnoses: dict[str, str | None], positive: Sequence[str], available: str
) -> tuple[str, ...]:
    """Match names as written, or as words for the same class of the vocabulary."""
    chosen: set[str] = set()
    for word in positive:
        diagnosis = parse_diagnosis(word)
        matches = {word} & diagnoses.keys()
        matches = matches or {
            n for n, value in diagnoses.items() if diagnosis and value == diagnosis
        }
        if not matches and diagnosis is None:
            raise InputError(f"data.positive: no class '{word}'; the classes are {available}")
        chosen |= matches
    if not chosen:
        raise InputError(
            f"data.positive: none of {', '.join(positive)} is among the classes {available}"
        )
    return tuple(name for name in diagnoses if name in chosen)


def _sort_key(name: str) -> tuple[int, str]:
    diagnosis = parse_diagnosis(name)
    return (CLASSES.index(diagnosis) if diagnosis else len(CLASSES), name)
