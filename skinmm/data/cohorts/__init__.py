"""Every public dataset as one canonical cohort table; an adapter is a function and a line below."""

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import chain, count
from typing import Any, Final

import pandas as pd

from skinmm.config import Component, DataConfig, ExtraCohort, build_component, check_component
from skinmm.data.cohorts.find_images import (
    absent,
    attach_masks,
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
from skinmm.data.cohorts.targets import add_targets, list_classes, list_positive_classes
from skinmm.data.cohorts.user import csv, image_folder, packed, tfrecord
from skinmm.data.record import check_columns
from skinmm.data.splits import hold_out
from skinmm.errors import InputError
from skinmm.images.dicom_headers import fill_from_headers
from skinmm.images.measure import MEASUREMENTS
from skinmm.vocabulary import map_unique, parse_diagnosis, resolve_patients

__all__ = [
    "ADAPTERS",
    "Adapter",
    "absent",
    "attach_masks",
    "list_classes",
    "list_positive_classes",
    "load_cohort",
    "require_images",
    "require_masks",
    "verify_cohort",
]

Adapter = Callable[..., pd.DataFrame]
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
    """Refuses what is wrong before anything is read: an adapter's name, its args, a folder."""
    args = {name: value for name, value in data.args.items() if name != "test_fraction"}
    check_component(ADAPTERS, "data", Component(data.name, args), context=("data",))
    if data.name != "demo":  # which brings its own
        require_root(data)
    for extra in data.extra:
        verify_cohort(_as_data(data, extra))


def load_cohort(data: DataConfig, *, labelled: bool = True) -> pd.DataFrame:
    """Reads a cohort, adds the extra ones, and gives every row its target.

    Args:
        data: which cohort; `args.test_fraction` holds out a test part of whole patients, the other
            args go to the adapter.
        labelled: whether targets are needed; a cohort without them then gets 0 in every row.

    Returns:
        Canonical rows, numbered from 0; `path` is None where no image was found. A column `part` is
        there where parts are fixed: by the data, held out, or `train` for the rows of `data.extra`.

    Raises:
        InputError: a folder, table, column, cell or option that cannot be used, by its name.
    """
    args = dict(data.args)
    fraction = args.pop("test_fraction", None)
    table = _read(replace(data, args=args))
    for extra in data.extra:
        table = _extended(table, data, extra)
    check_columns(data.columns, [*table.columns, *_measurable(table, data)])
    try:
        table = add_targets(table, data)
    except InputError:
        if labelled:
            raise
        table = table.assign(target=0)
    return table if fraction is None else hold_out(table, _share(fraction), data.split_seed)


def _measurable(table: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Columns that can be had from the images; `skinmm.models.lesion_finder.measured` fills them.

    Raises:
        InputError: one is asked for, the table lacks it, and nothing finds the lesion.
    """
    wanted = [name for name in data.columns if name in MEASUREMENTS and name not in table]
    if wanted and not data.segmenter:
        raise InputError(
            f"data.columns: '{wanted[0]}' is measured on the image: name a checkpoint of "
            "task=segmentation that finds the lesion, data.segmenter=CKPT"
        )
    return MEASUREMENTS if data.segmenter else ()


def _share(fraction: Any) -> float:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise InputError(f"+data.args.test_fraction={fraction}: must be a number")
    return float(fraction)


def _read(data: DataConfig) -> pd.DataFrame:
    """One cohort; without a patient the lesion stands in, without a lesion the image."""
    table = build_component(ADAPTERS, "data", Component(data.name, data.args), data=data)
    table = fill_from_headers(table).reset_index(drop=True)
    return table.assign(patient_id=resolve_patients(table))


def _extended(table: pd.DataFrame, data: DataConfig, extra: ExtraCohort) -> pd.DataFrame:
    """Adds another cohort's rows for training only, less the images that are there already."""
    other = _read(_as_data(data, extra))
    other = other[~other["image_id"].isin(table["image_id"])].assign(part="train")
    other["source"] = map_unique(other["source"], lambda name: _another(name, set(table["source"])))
    spelling = {parse_diagnosis(name): name for name in table["diagnosis"].dropna().unique()}
    other["diagnosis"] = other["diagnosis"].map(
        lambda name: spelling.get(parse_diagnosis(name), name)
    )
    joined = pd.concat([table, other], ignore_index=True)
    joined.attrs = table.attrs
    return joined


def _as_data(data: DataConfig, extra: ExtraCohort) -> DataConfig:
    if extra.name in ADAPTERS and extra.name != "demo" and not extra.root:
        own = f"data.extra=[{{name:{extra.name},root:DIR}}]"
        raise InputError(f"data.extra: {extra.name} needs a root of its own, {own}")
    return replace(data, name=extra.name, root=extra.root, format="auto", args={}, extra=[])


def _another(name: str, taken: Collection[str]) -> str:
    """A cohort's name, with a number where another cohort has it already."""
    names = chain([name], (f"{name} ({number})" for number in count(2)))
    return next(each for each in names if each not in taken)
