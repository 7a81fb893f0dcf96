"""The words of a record: one table that catalog, predict and serve share; missing stays missing."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64

Columns = Mapping[str, np.ndarray]
"""A table column by column: for a few rows, what pandas costs a table would be most of the work."""
Table = pd.DataFrame | Columns


def rows_of(table: Table) -> int:
    """How many rows a table has."""
    return len(table) if isinstance(table, pd.DataFrame) else len(next(iter(table.values())))


SEXES: Final = ("female", "male")
SITES: Final = (
    "head/neck",
    "lower extremity",
    "oral/genital",
    "palms/soles",
    "torso",
    "upper extremity",
)
CLASSES: Final = ("akiec", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc", "unknown")
MALIGNANT: Final = ("akiec", "bcc", "mel", "scc")
MAX_AGE: Final = 120.0  # years

COLUMN_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "image_id": ("image_id", "image_name", "isic_id", "image", "path", "img_id"),
    "patient_id": ("patient_id", "patient"),
    "lesion_id": ("lesion_id", "lesion"),
    "age": ("age", "age_approx", "age_approximate"),
    "sex": ("sex", "gender"),
    "site": (
        "site",
        "anatom_site_general_challenge",
        "anatom_site_general",
        "localization",
        "region",
    ),
    "diagnosis": ("diagnosis", "dx", "diagnostic"),
    "target": ("target", "malignant", "melanoma"),
}
"""Canonical column -> the names public tables give it, first match wins."""

_MISSING: Final = frozenset(
    ("", "-", "?", "na", "n/a", "nan", "none", "null", "unk", "unknown", "unspecified")
)
_SEX_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "female": ("female", "f", "woman"),
    "male": ("male", "m", "man"),
}
_SITE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "head/neck": ("head/neck", "head", "neck", "face", "scalp", "ear", "nose", "lip"),
    "lower extremity": ("lower extremity", "lower limb", "leg", "thigh", "foot"),
    "oral/genital": ("oral/genital", "oral", "genital", "mucosa"),
    "palms/soles": ("palms/soles", "palm", "palms", "sole", "soles", "acral"),
    "torso": (
        *("torso", "anterior torso", "posterior torso", "lateral torso", "trunk", "back"),
        *("chest", "abdomen", "buttock", "torso front", "torso back"),
    ),
    "upper extremity": ("upper extremity", "upper limb", "arm", "forearm", "hand"),
}
_DIAGNOSIS_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "akiec": ("akiec", "ak", "ack", "actinic keratosis", "solar keratosis", "bowen's disease"),
    "bcc": ("bcc", "basal cell carcinoma"),
    "bkl": (
        *("bkl", "sek", "benign keratosis", "pigmented benign keratosis", "seborrheic keratosis"),
        *("lichenoid keratosis", "solar lentigo", "lentigo nos"),
    ),
    "df": ("df", "dermatofibroma"),
    "mel": ("mel", "melanoma"),
    "nv": ("nv", "nev", "nevus", "naevus", "melanocytic nevus"),
    "scc": ("scc", "squamous cell carcinoma"),
    "vasc": ("vasc", "vascular lesion", "angioma", "hemangioma"),
    # The last two occur once each in SIIM-ISIC; its winners counted them as unknown.
    "unknown": ("unknown", "unk", "cafe au lait macule", "atypical melanocytic proliferation"),
}
_DICOM_AGE: Final = re.compile(r"(\d{1,3})([dwmy])")
_YEARS: Final = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}


def _inverted(words: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, synonyms in words.items() for word in synonyms}


_SEX: Final = _inverted(_SEX_WORDS)
_SITE: Final = _inverted(_SITE_WORDS)
_DIAGNOSIS: Final = _inverted(_DIAGNOSIS_WORDS)


def normalise(value: Any) -> str:
    """Lower case, single spaces for runs of space, `_` and `-`; missing gives an empty string."""
    return "" if pd.isna(value) else re.sub(r"[\s_-]+", " ", str(value).lower()).strip()


def is_missing(value: Any) -> bool:
    """Whether a cell is empty or holds a word for "not known"."""
    return pd.isna(value) or str(value).strip().lower() in _MISSING


def canonical_sex(value: Any) -> str | None:
    """`female`, `male` or None; case does not matter, DICOM's F and M are understood."""
    return _SEX.get(normalise(value))


def canonical_site(value: Any) -> str | None:
    """One of `SITES` from the words of ISIC, HAM10000, PAD-UFES-20 and DICOM tables, or None."""
    return _SITE.get(re.sub(r" ?(&|/|\band\b) ?", "/", normalise(value)))


def canonical_diagnosis(value: Any) -> str | None:
    """One of `CLASSES` or None; `unknown` is a class, an empty cell is None."""
    return _DIAGNOSIS.get(normalise(value))


def canonical_age(value: Any) -> float | None:
    """Age in years from a number, its text, or DICOM's `055Y`; None when missing or unusable.

    Unusable is what is no number, negative, or above `MAX_AGE`.
    """
    text = str(value).strip().lower()
    dicom = _DICOM_AGE.fullmatch(text)
    try:
        age = int(dicom[1]) * _YEARS[dicom[2]] if dicom else float(text.replace(",", "."))
    except ValueError:
        return None
    return age if 0 <= age <= MAX_AGE else None


CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "age": canonical_age,
    "sex": canonical_sex,
    "site": canonical_site,
}


def by_value(column: "pd.Series[Any]", function: Callable[[Any], Any]) -> "pd.Series[Any]":
    """Maps a column by calling the function once for each distinct value; missing cells stay so."""
    return column.map({value: function(value) for value in column.dropna().unique()})


def numbers_of(cells: Iterable[Any]) -> Float64[np.ndarray, " n"]:
    """Numbers of a column's cells, with a decimal point or comma; NaN for what is none."""
    plain = [cell.replace(",", ".") if isinstance(cell, str) else cell for cell in cells]
    return np.asarray(pd.to_numeric(pd.Series(plain, dtype=object), errors="coerce"), np.float64)


def canonicalise(cells: Iterable[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Turns a column into vocabulary.

    Args:
        cells: as read from any table.
        name: `age`, `sex` or `site`.

    Returns:
        The canonical column (age float64, else text or None), and a mask of the cells that held
        something which is not in the vocabulary and became missing.
    """
    convert, held = CONVERTERS[name], list(cells)
    known = {cell: convert(cell) for cell in dict.fromkeys(held)}
    refused = {cell for cell, word in known.items() if word is None and not is_missing(cell)}
    canonical = np.array([known[cell] for cell in held], np.float64 if name == "age" else object)
    return canonical, np.array([cell in refused for cell in held], np.bool_)


def renamed(names: Iterable[Any]) -> dict[Any, str]:
    """Public column names and their canonical ones; those that stay as they are, are not there."""
    there, found = {*names}, {}
    for canonical, public in COLUMN_NAMES.items():
        if name := next((name for name in public if name in there), None):
            found[name] = canonical
    return found


def rename_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Gives public column names their canonical name; other columns stay as they are."""
    return table.rename(columns=renamed(table.columns))


def canonical_name(value: Any) -> Any:
    """A patient's or lesion's name as names are compared: composed letters, no spaces around."""
    return unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else value


def patients_of(table: pd.DataFrame) -> "pd.Series[Any]":
    """Whose each row is: without a patient the lesion stands in, without a lesion the image."""
    return table["patient_id"].fillna(table["lesion_id"]).fillna(table["image_id"])
