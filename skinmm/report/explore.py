"""The page about a cohort before any model: counts, what is missing, ages, sites, sizes, faces."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.errors import InputError
from skinmm.images.decode import probe
from skinmm.images.source import read_source
from skinmm.report.blocks import Block, Gallery, Note, Plot, Row, Section, Table, Tile, Tiles
from skinmm.report.cohorts import Cohort, lesion_card
from skinmm.report.figures import people
from skinmm.report.format import percent, plural
from skinmm.report.page import write_page
from skinmm.report.sections.cohort import characteristics, patients_in

MEASURED: Final = 2000  # images whose header is read where the table does not say their size
SIZES: Final = 10
ALL: Final = "All"
_NOT_KNOWN: Final = "not known"


def explore_page(cohort: Cohort, output: Path, *, examples: int = 12) -> Path:
    """Writes the page, in place of an earlier one.

    Args:
        cohort: the rows; images that are not on disk are counted.
        output: the page to write.
        examples: pictures of each class, chosen by chance but the same every time.

    Returns:
        The page.
    """
    made = [_counts(cohort), _missing(cohort), _people(cohort), _sizes(cohort)]
    if examples:
        made.append(_contact_sheets(cohort, examples))
    sections = [section for section in made if section is not None]
    return write_page(output, title="Cohort", facts=cohort.facts, sections=sections)


def _counts(cohort: Cohort) -> Section:
    rows = cohort.rows
    there, malignant = int(rows["path"].notna().sum()), int(rows["malignant"].sum())
    patients, lesions = patients_in(rows), int(rows["lesion_id"].nunique())
    named = f"named for {plural(int(rows['lesion_id'].notna().sum()), 'image')}"
    per_patient = f"{len(rows) / patients:.1f} images each"
    tiles = Tiles(
        [
            Tile("Images", f"{len(rows):,}", f"{there:,} on disk"),
            Tile(
                "Patients",
                f"{patients:,}",
                per_patient,
                "lesions, then images, where no patient is named",
            ),
            Tile("Lesions", f"{lesions:,}" if lesions else _NOT_KNOWN, named if lesions else ""),
            Tile("Malignant", percent(malignant / len(rows)), plural(malignant, "image")),
        ]
    )
    parts = {ALL: rows, **cohort.by_class}
    blocks: list[Block] = [tiles, characteristics("Who is in which class", parts)]
    if rows["diagnosis"].nunique() > len(cohort.classes):
        blocks.append(_crosstab("Diagnoses", rows["diagnosis"], cohort))
    return Section("counts", "Counts", blocks)


def _missing(cohort: Cohort) -> Section:
    """By class, because what is missing more often in one class gives it away."""
    parts = {ALL: cohort.rows, **cohort.by_class}
    named = {"path": "image on disk", "width": "image size in the table"}
    columns = dict.fromkeys((*cohort.columns, "diagnosis", "lesion_id", *named))
    lines = [
        (named.get(name, name), *(_share(rows[name].isna()) for rows in parts.values()))
        for name in columns
    ]
    lead = "A column that is missing more often in one class than in another gives the class away."
    return Section("missing", "Missing", [Table("", ("Not known", *parts), lines)], lead)


def _people(cohort: Cohort) -> Section | None:
    plots = []
    if cohort.rows["age"].notna().any():
        parts = {ALL: cohort.rows, **cohort.by_class}
        ages = {name: rows["age"].dropna().to_numpy(float) for name, rows in parts.items()}
        text = "Diamond: median; thick: the middle half; thin: the middle 90 %."
        plots.append(Plot("Age by class", people.ages(ages), text))
    if cohort.rows["site"].notna().any():
        sites = cohort.rows["site"].fillna(_NOT_KNOWN)
        counts = pd.crosstab(sites, cohort.rows["class"])[list(cohort.by_class)]
        counts = counts.loc[sites.value_counts().index]
        drawn = people.shares(counts.to_numpy("int64"), list(counts.index), list(counts.columns))
        plots.append(Plot("Sites by class", drawn))
    return Section("people", "Age and site", [Row(plots)]) if plots else None


def _sizes(cohort: Cohort) -> Section:
    known = cohort.rows[["width", "height"]].astype(float)
    blocks: list[Block] = []
    if known.isna().any(axis=None):
        asked = cohort.rows[known.isna().any(axis=1) & cohort.rows["path"].notna()]
        asked = asked.sample(min(MEASURED, len(asked)), random_state=0)
        known.update(_measured(asked))
        text = f"The table lacks sizes; those of {plural(len(asked), 'image')} were looked up."
        blocks.append(Note(text))
    known = known.dropna().astype(int)
    sizes = known["width"].astype(str) + "x" + known["height"].astype(str)
    if sizes.empty:
        blocks.append(Note("No size is known."))
    else:
        common = sizes.value_counts().index[:SIZES]
        sizes = sizes.where(sizes.isin(common), "other")
        blocks.append(_crosstab("Width and height, pixels", sizes, cohort))
    lead = "Where sizes differ between classes, a model can tell cameras instead of lesions."
    return Section("sizes", "Image sizes", blocks, lead)


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Width and height as the files' headers say; missing where there is none to read."""

    def measure(path: str) -> tuple[int | None, int | None]:
        try:
            info = probe(read_source(path).data)
        except (OSError, InputError):
            return None, None
        return info.width, info.height

    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(measure, rows["path"]))
    return pd.DataFrame(sides, rows.index, ["width", "height"], dtype=float)


def _crosstab(caption: str, values: "pd.Series[Any]", cohort: Cohort) -> Table:
    """How often each value occurs, in all and as a share of each class; the common ones first."""
    groups = cohort.by_class.items()
    parts = {ALL: values, **{name: values[values.index.isin(rows.index)] for name, rows in groups}}
    lines = [
        (str(value), *(_share(part == value) if len(part) else "" for part in parts.values()))
        for value in values.value_counts().index
    ]
    return Table(caption, ("", *parts), lines)


def _contact_sheets(cohort: Cohort, examples: int) -> Section:
    galleries: list[Block] = []
    for name, rows in cohort.by_class.items():
        there = rows[rows["path"].notna()]
        chosen = there.sample(min(examples, len(there)), random_state=0)
        caption = f"{name}: {len(chosen):,} of {len(rows):,}"
        galleries.append(Gallery(caption, [lesion_card(row) for row in chosen.to_dict("records")]))
    return Section("pictures", "Contact sheets", galleries, "Chosen by chance.")


def _share(mask: "pd.Series[bool]") -> str:
    return f"{int(mask.sum()):,} ({percent(float(mask.mean()))})"
