"""Lesions with several images: words for views, and grouping of image rows by lesion."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Int

from skinmm.config import DataConfig
from skinmm.data.file_checks import FileCheck, fill_sizes, require_usable
from skinmm.data.splits import find_components
from skinmm.errors import InputError, list_words
from skinmm.images.finder import strip_suffix
from skinmm.images.measure import MEASUREMENTS
from skinmm.vocabulary import (
    VIEW_TYPES,
    column_key,
    is_missing,
    map_unique,
    match_columns,
    name_units,
)

UNSTATED: Final = VIEW_TYPES[1]
VIEW_WORDS: Final[dict[str, str]] = {
    "dermoscopic": "dermoscopy, dermatoscopic, dermatoscopy, derm, dscope",
    "clinical": (
        "clinic, close up, closeup, macroscopic, macro, clinical close up, tbp tile close up, "
        "tbp tile, 6in"
    ),
    "overview": "clinical overview, tbp tile overview, regional, 1ft",
}
"""View -> other words for it, of ISIC, MILK10k, Derm7pt and MIDAS."""
VIEW_COLUMNS: Final = ("view", "image_type", "view_type")
SEPARATOR: Final = "|"
"""Between the images of a lesion in one cell."""
_WORDS: Final = {
    word: view for view, words in VIEW_WORDS.items() for word in (view, *words.split(", "))
}
_ORDER: Final = {name: number for number, name in enumerate((*VIEW_TYPES[2:], UNSTATED))}
_IMAGE_COLUMN: Final = re.compile(r"(?:image|img|path|file|filename)[\W_]+(.+)", re.IGNORECASE)


def parse_view(value: Any) -> str | None:
    """Return the view for a word such as `dermoscopy`; None for an unknown word."""
    return _WORDS.get(re.sub(r"[\W_]+", " ", str(value).lower()).strip())


def find_view_column(names: Iterable[Any]) -> Any:
    """Return the name of the column with the view of each image, or None."""
    by_key = {column_key(name): name for name in names}
    return next((by_key[key] for key in map(column_key, VIEW_COLUMNS) if key in by_key), None)


def parse_views(cells: "pd.Series[Any]") -> tuple["pd.Series[Any]", dict[str, int]]:
    """Return the view of each cell (None if missing), and the count of each unknown word."""
    words = map_unique(cells, lambda cell: None if is_missing(cell) else str(cell))
    views = map_unique(words, parse_view).astype(object)
    views = views.where(views.notna(), None)
    return views, dict(Counter(words[words.notna() & views.isna()]))


def add_views(table: pd.DataFrame, columns: Sequence[str], file: Path) -> pd.DataFrame:
    """Return a table of images with the column `view` and the columns `NAME_VIEW`.

    A record column `NAME_VIEW`, such as `hair_clinical`, is the column `NAME` of the image of that
    view, for all images of the lesion. Words that are no view are refused.
    """
    name = find_view_column(table)
    views = pd.Series(None, table.index, dtype=object)
    if name is not None:
        views, unknown = parse_views(table[name])
        if unknown:
            raise InputError(
                f"{file}: column {name}: not a view: {list_words(Counter(unknown))}; allowed: "
                f"{', '.join(VIEW_WORDS)}, a synonym, or empty"
            )
    return spread_columns(table.assign(view=views), columns)


def spread_columns(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Add each column `NAME_VIEW`: the value of `NAME` for the lesion's image of that view."""
    lesions = name_lesions(table)
    added = {}
    for name in columns:
        base, _, view = name.rpartition("_")
        if name not in table and base in table and view in VIEW_WORDS:
            cells = table[base].where(table["view"] == view)
            added[name] = lesions.map(cells.groupby(lesions, sort=False).first())
    return table.assign(**added)


def name_spread_columns(names: Sequence[Any], columns: Sequence[str]) -> list[Any]:
    """Return the column names of a table after spreading its image columns over the views.

    Columns `NAME` with a `NAME_VIEW` among `columns` are replaced by these, and the column of the
    views is left out.
    """
    spread = {}
    for name in columns:
        base, _, view = name.rpartition("_")
        if name not in names and base in names and view in VIEW_WORDS:
            spread[name] = base
    used = {*spread.values(), find_view_column(names)}
    return [*(name for name in names if name not in used), *spread]


def name_lesions(table: pd.DataFrame) -> "pd.Series[Any]":
    """Return the lesion of each row, or else its image."""
    if "lesion_id" not in table:
        return table["image_id"]
    lesions = table["lesion_id"].map(lambda cell: None if is_missing(cell) else cell)
    return lesions.where(lesions.notna(), table["image_id"])


def split_image_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Convert image columns of views, such as `image_clinical`, to one row per image.

    Without a column of lesions, each row is a lesion with the name of its first image.
    """
    matches = {name: _IMAGE_COLUMN.fullmatch(str(name)) for name in table}
    views = {n: view for n, match in matches.items() if match and (view := parse_view(match[1]))}
    canonical = match_columns(table.columns)
    if not views or "image_id" in canonical.values():
        return table
    shared = table.drop(columns=[*views])
    parts = [shared.assign(image_id=table[n], view=view) for n, view in views.items()]
    stacked = pd.concat(parts).sort_index(kind="stable")
    has_image = pd.Series([not is_missing(c) for c in stacked["image_id"]], stacked.index)
    is_first = ~stacked.index.duplicated()
    has_none = ~has_image.groupby(level=0).transform("any")
    stacked = stacked[has_image | (is_first & has_none)]
    if "lesion_id" not in canonical.values():
        files = map_unique(stacked["image_id"], lambda cell: strip_suffix(str(cell)))
        stacked["lesion_id"] = files.groupby(level=0).transform("first")
    return stacked


def require_different_images(stacked: pd.DataFrame, source: str) -> None:
    """Raise InputError if the image columns of a row name one file twice."""
    if "image_id" not in stacked:  # the table has an image column of another name
        return
    files = map_unique(stacked["image_id"], lambda cell: strip_suffix(str(cell)))
    repeated = pd.DataFrame({"row": stacked.index, "file": files.to_numpy()}).duplicated()
    repeated &= files.notna().to_numpy()
    if repeated.any():
        row, name = stacked.index[repeated][0], files[repeated.to_numpy()].iloc[0]
        raise InputError(
            f"{source}: row {row + 2}: two image columns name one file, {name}; name each image "
            "once"
        )


def list_groups(codes: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " rows"]]:
    """Return the row numbers of each code 0, 1, ..., in ascending order."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def choose_views(views: Sequence[str | None], limit: int) -> list[int]:
    """Return the positions of at most `limit` images of a lesion.

    The first image of each view comes before the second of any; views come in the order
    dermoscopic, clinical, overview, unstated, and images of one view in the order of the table.
    """
    counts, ranks = Counter[str](), []
    for position, view in enumerate(view or UNSTATED for view in views):
        ranks.append((counts[view], _ORDER[view], position))
        counts[view] += 1
    return [position for *_, position in sorted(ranks)[:limit]]


def group_lesions(rows: pd.DataFrame, data: DataConfig) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Group rows of images by lesion, in the order of their first images.

    Returns:
        A row per lesion, and lines on the cohort. `image_id` and `lesion_id` name the lesion (its
        image, where the lesion is unknown). `images`, `image_views` and `paths` list its images
        with `|` between them (see `choose_views`); `path`, `width` and `height` belong to the first
        image. Every other cell is the first value that is not missing.
    """
    if measured := [name for name in data.columns if name in MEASUREMENTS and name not in rows]:
        raise InputError(
            f"data.columns: '{measured[0]}' is measured on one image; not available for "
            "data.unit=lesion"
        )
    _require_plain_names(rows)
    names = name_lesions(rows)
    codes, lesions = pd.factorize(rows["cohort"].astype(str) + "\0" + names.astype(str))
    rows = rows.assign(lesion_id=names, patient_id=_resolve_patients(rows, names))
    rows = _link_lesions(rows)
    views = rows["view"].fillna("") if "view" in rows else pd.Series("", rows.index)
    merged = rows.groupby(codes, sort=False).first()
    merged["image_id"] = merged["lesion_id"]
    kinds, chosen, dropped = views.to_numpy(object), [], 0
    for positions in list_groups(codes):
        picks = choose_views(kinds[positions].tolist(), data.views)
        dropped += len(picks) < len(positions)
        chosen.append(positions[picks])
    columns = {"images": rows["image_id"], "image_views": views, "paths": rows["path"]}
    if "licence" in rows:
        columns["licence"] = rows["licence"].fillna("")
    joined = {name: _join_cells(column, chosen) for name, column in columns.items()}
    images = pd.DataFrame(joined, merged.index, dtype=object)
    first = rows.iloc[[p[0] for p in chosen]][["path", "width", "height"]].set_index(merged.index)
    merged = merged.drop(columns="view", errors="ignore").assign(**first, **images)
    notes = [f"{len(lesions)} lesions of {len(rows)} images"]
    if dropped:
        notes.append(
            f"{dropped} lesions have more than {data.views} images: {data.views} of each are used "
            "(data.views)"
        )
    merged, left_out = _drop_contradictions(rows, codes, merged, data)
    _require_unique(merged)
    return merged.reset_index(drop=True), (*notes, *left_out)


def group_usable(
    rows: pd.DataFrame, checks: Sequence[FileCheck], data: DataConfig
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Check the files of all images, and group the usable ones; see `group_lesions`."""
    is_usable, notes, sizes = require_usable(rows, checks, data.missing)
    rows = fill_sizes(rows, sizes)[is_usable].reset_index(drop=True)
    lesions, more_notes = group_lesions(rows, data)
    return lesions, (*notes, *more_notes)


def explode_images(cohort: pd.DataFrame) -> pd.DataFrame:
    """Convert rows of lesions to one row per image; rows of images are unchanged."""
    if "images" not in cohort:
        return cohort
    names = cohort["images"].str.split(SEPARATOR, regex=False)
    paths = (
        cohort["paths"]
        .str.split(SEPARATOR, regex=False)
        .where(cohort["paths"].notna(), names.map(lambda row: [None] * len(row)))
    )
    columns = cohort.assign(image_id=names, path=paths)
    return columns.explode(["image_id", "path"], ignore_index=True)


def _drop_contradictions(
    rows: pd.DataFrame, codes: Any, merged: pd.DataFrame, data: DataConfig
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    names = ["target", "patient_id", *data.columns, "part", "public_fold"]
    wrong: dict[int, str] = {}
    for name in [name for name in names if name in rows]:
        counts = rows[name].groupby(codes, sort=False).nunique()
        for code in counts.index[counts > 1]:
            cells = ", ".join(map(str, rows[name][codes == code].dropna().unique()))
            wrong.setdefault(code, f"{merged['lesion_id'][code]} ({name}: {cells})")
    if not wrong:
        return merged, ()
    message = f"{len(wrong)} lesions have images that contradict each other: " + "; ".join(
        [*wrong.values()][:3]
    )
    if data.missing != "drop" or len(wrong) == len(merged):
        raise InputError(f"{message}; correct them, or set data.missing=drop to leave them out")
    return merged.drop(index=[*wrong]), (f"{message}: left out",)


def _resolve_patients(rows: pd.DataFrame, lesions: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the patient of each lesion, from its first image with one, or else the lesion."""
    named = rows["patient_id"].where(name_units(rows) == "patient")
    shared = named.groupby(rows["cohort"].astype(str) + "\0" + lesions.astype(str)).transform(
        "first"
    )
    return named.fillna(shared).fillna(lesions)


def _link_lesions(rows: pd.DataFrame) -> pd.DataFrame:
    """Convert links between duplicate images to links between their lesions."""
    if "duplicate_of" not in rows:
        return rows
    component = pd.Series(find_components(rows), rows.index)
    first = rows["lesion_id"].groupby(component).transform("first")
    return rows.assign(duplicate_of=first.where(first != rows["lesion_id"], None))


def _join_cells(column: "pd.Series[Any]", groups: Sequence[Any]) -> list[str | None]:
    """Join the cells of each lesion; None if one is missing."""
    cells, is_missing_cell = column.to_numpy(object), column.isna().to_numpy()
    return [None if is_missing_cell[p].any() else SEPARATOR.join(cells[p]) for p in groups]


def _require_plain_names(rows: pd.DataFrame) -> None:
    for name in ("image_id", "lesion_id", "path"):
        marked = rows[name].dropna().astype(str)
        marked = marked[marked.str.contains(SEPARATOR, regex=False)]
        if len(marked):
            raise InputError(
                f"{name} {marked.iloc[0]!r} contains {SEPARATOR}, which separates the images of a "
                "lesion; rename it"
            )


def _require_unique(lesions: pd.DataFrame) -> None:
    repeated = lesions[lesions["image_id"].duplicated(keep=False)]
    if len(repeated):
        name = repeated["image_id"].iloc[0]
        sources = repeated.loc[repeated["image_id"] == name, "cohort"].unique()
        raise InputError(
            f"lesion id '{name}' names two lesions (in {' and '.join(map(str, sources))}); rename "
            "one of them"
        )
