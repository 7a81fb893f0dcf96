"""Canonical columns, words and units of a patient record."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64

Columns = Mapping[str, np.ndarray]
"""Arrays by column name: cheaper than a DataFrame for a table of a few rows."""
Table = pd.DataFrame | Columns

COLUMN_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "image_id": (
        *("image_id", "image_name", "isic_id", "image", "path", "img_id", "filename", "file_name"),
        *("image_path", "image_file", "bcn_filename", "photo", "picture", "foto", "bild"),
    ),
    "patient_id": (
        *("patient_id", "patient", "subject_id", "subject", "patient_no", "patient_number", "mrn"),
    ),
    "lesion_id": ("lesion_id", "lesion"),
    "age": (
        *("age", "age_approx", "age_approximate", "age_years", "patient_age", "years"),
        *("age_in_years", "alter", "edad"),
    ),
    "sex": ("sex", "gender", "patient_sex", "geschlecht", "sexo", "sexe"),
    "site": (
        *("site", "anatom_site_general_challenge", "anatom_site_general", "localization"),
        *("region", "anatom_site", "anatomic_site", "body_site", "body_part", "localisation"),
        *("location", "lokalisation"),
    ),
    "diagnosis": ("diagnosis", "dx", "diagnostic", "histology"),
    "target": ("target", "malignant", "melanoma"),
    "source": ("source", "attribution"),
}
"""Canonical column -> its names in public and clinical tables, in order of precedence. Case, blanks
and punctuation do not count: `Patient-ID` is `patient_id`."""
MALIGNANT: Final = ("akiec", "bcc", "mel", "scc")
MAX_AGE: Final = 120.0  # years

_EMPTY: Final = {
    *("", "-", "?", "na", "n/a", "nan", "none", "null", "unk", "unknown", "unspecified", "pending"),
    *("undetermined", "indeterminate", "not known"),
}
_SEX_WORDS: Final[dict[str, tuple[str, ...]]] = {"female": ("f", "woman"), "male": ("m", "man")}
# Words of ISIC, MILK10k, HAM10000, BCN20000, HIBA, Derm7pt and PAD-UFES-20, the terms of DICOM
# PS3.16 annex L, and the words in the names of its context group 4029 (sites of dermatology), in
# the singular and without laterality. A name with words of several sites has the first of them.
_SITE_WORDS: Final[dict[str, str]] = {
    "oral/genital": (
        "oral, oral cavity, oral or genital, mouth, mucosa, oropharynx, palate, tongue, tooth, "
        "genital, genitalia, genital area, anus, clitoris, labia, labium, penis, perineum, "
        "scrotum, testis, urethral, vagina, vaginal, vulva, vulval"
    ),
    "head/neck": (
        "head, neck, headneck, head neck, head neck face, face, scalp, skull, occipital, "
        "parietal, temporal, temple, nuchal, ear, external ear, auditory, antihelix, antitragus, "
        "concha, helix, intertragal, pinna, postauricular, preauricular, tragus, eye, canthus, "
        "cornea, eyebrow, eyelash, eyelid, iris, orbit, retina, sclera, nose, infraalar, nasi, "
        "nasolabial, paranasal, lip, perioral, philtrum, cheek, zygoma, chin, forehead, jaw, "
        "jawline, mandible, maxilla, parotid, submandibular, submental, tmjoint, cspine"
    ),
    "palms/soles": (
        "palm, palmar, sole, plantar, palm sole, palms sole, palm or sole, palms or sole, acral, "
        "acral palm or sole, acral palms or sole"
    ),
    "torso": (
        "trunk, anterior torso, posterior torso, lateral torso, torso front, torso back, abdomen, "
        "epigastric, hypogastric, umbilicus, abdomenpelvis, chestabdomen, chestabdpelvis, chest, "
        "thorax, thoracic, areola, breast, nipple, rib, sternum, sternal, clavicle, "
        "infraclavicular, axilla, flank, back, paraspinal, scapula, spine, tspine, lspine, "
        "sspine, coccyx, sacrum, pelvis, groin, inguinal, buttock, gluteal, gluteus"
    ),
    "lower extremity": (
        "lower limb, lowerlimb, extremity lower, leg, lower leg, lowerleg, thigh, femur, hip, "
        "knee, patella, popliteal, popliteal fossa, calf, shin, tibia, fibula, ankle, foot, heel, "
        "calcaneus, toe, toenail"
    ),
    "upper extremity": (
        "upper limb, upperlimb, extremity upper, arm, upper arm, upperarm, shoulder, humerus, "
        "elbow, antecubital, antecubital fossa, forearm, radius, ulna, wrist, hand, finger, "
        "fingernail, thumb"
    ),
}
_DIAGNOSIS_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "akiec": ("ak", "ack", "actinic keratosis", "solar keratosis", "bowen's disease"),
    "bcc": ("basal cell carcinoma",),
    "bkl": (
        *("sek", "benign keratosis", "pigmented benign keratosis", "seborrheic keratosis"),
        *("lichenoid keratosis", "solar lentigo", "lentigo nos"),
    ),
    "df": ("dermatofibroma",),
    "mel": ("melanoma",),
    "nv": ("nev", "nevus", "naevus", "melanocytic nevus"),
    "scc": ("squamous cell carcinoma",),
    "vasc": ("vascular lesion", "angioma", "hemangioma"),
    # The last two occur once each in SIIM-ISIC; the winning solution counted them as unknown.
    "unknown": ("unk", "cafe au lait macule", "atypical melanocytic proliferation"),
}
_AGE: Final = re.compile(  # not 1,033
    r"(?!\+?[1-9]\d{0,2},\d{3}(?!\d))\+?(\d+[.,]?\d*|[.,]\d+)"
    r"(?:\s*(days?|weeks?|months?|years?|yrs?)|(y|(?<=^\d{3})[dwm]))?"
)
_YEARS: Final = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}  # by DICOM's unit
_INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_YES: Final = ("true", "yes", "y", "t", "1", "1.0", "ja")
_NO: Final = ("false", "no", "n", "f", "0", "0.0", "nein")
_TRUTH: Final = dict.fromkeys(_YES, "true") | dict.fromkeys(_NO, "false")

SEXES: Final = tuple(_SEX_WORDS)
SITES: Final = tuple(sorted(_SITE_WORDS))
CLASSES: Final = tuple(_DIAGNOSIS_WORDS)
VIEW_TYPES: Final = ("absent", "unstated", "dermoscopic", "clinical", "overview")
"""Types of an image by their code in a network; code 0 is a place without an image."""
_SEX, _DIAGNOSIS = (
    {word: name for name, synonyms in table.items() for word in (name, *synonyms)}
    for table in (_SEX_WORDS, _DIAGNOSIS_WORDS)
)
_SITE: Final = {
    word: site for site, words in _SITE_WORDS.items() for word in (site, *words.split(", "))
}


def count_table_rows(table: Table) -> int:
    """Return the number of rows of a table."""
    return len(table) if isinstance(table, pd.DataFrame) else len(next(iter(table.values())))


def _normalise(value: Any) -> str:
    """Convert to lower case, and each run of spaces, `_` and `-` to one space; "" if missing."""
    return "" if pd.isna(value) else re.sub(r"[\s_-]+", " ", str(value).lower()).strip()


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty or a word for "unknown"."""
    is_empty = not isinstance(value, str) and bool(pd.isna(value))
    return is_empty or str(value).strip().lower() in _EMPTY


def parse_sex(value: Any) -> str | None:
    """Return `female`, `male` or None for a word in any case, or DICOM's F or M."""
    return _SEX.get(_normalise(value))


_SITE_END: Final = r" (left|right|region|joint|nos|upper|lower|(top|middle|bottom) (third|half))$"


def parse_site(value: Any) -> str | None:
    """Return one of `SITES` for words of a public dataset or DICOM (side optional), or None."""
    word = re.sub(r" ?(&|/|\band\b) ?", "/", _normalise(value))
    word = re.sub(r"^(left|right|bilateral) ", "", word).removeprefix("skin of ")
    for name in (word, re.sub(_SITE_END, "", word)):
        if site := _SITE.get(name) or _SITE.get(name.removesuffix("s")):
            return site
    is_name = r"^skin of |\b(skin|mucosa|nail unit|labi.*|urethral|introitus|vestibule|triangle)\b"
    if not re.search(is_name, _normalise(value)):
        return None
    parts = re.sub(r"palmar (area of )?wrist", "wrist", word).split()
    sites = {_SITE.get(part) or _SITE.get(part.removesuffix("s")) for part in parts}
    return next((site for site in _SITE_WORDS if site in sites), None)


def parse_diagnosis(value: Any) -> str | None:
    """Return the class in `CLASSES` that a text names; None if it is empty or not recognised."""
    return _DIAGNOSIS.get(_normalise(value))


def parse_age(value: Any) -> float | None:
    """Return the age in years from a number, `055Y` or `18 months`; None above `MAX_AGE`."""
    if not (match := _AGE.fullmatch(str(value).strip().lower())):
        return None
    age = float(match[1].replace(",", ".")) * _YEARS[(match[2] or match[3] or "y")[0]]
    return age if age <= MAX_AGE else None


def is_in_months(name: Any) -> bool:
    """Return whether the name of a column denotes ages in months."""
    return re.match("(patient)?(age|alter).*mon(th|at)", column_key(name)) is not None


CONVERTERS: Final[dict[str, Any]] = {"age": parse_age, "sex": parse_sex, "site": parse_site}


def map_unique(column: "pd.Series[Any]", function: Callable[[Any], Any]) -> "pd.Series[Any]":
    """Map a column with one function call per distinct value; missing cells stay missing."""
    return column.map({value: function(value) for value in column.dropna().unique()})


def parse_numbers(cells: Iterable[Any]) -> Float64[np.ndarray, " n"]:
    """Return cells as numbers, with a decimal point or comma; other text becomes NaN."""
    texts = [cell.replace(",", ".") if isinstance(cell, str) else cell for cell in cells]
    return np.asarray(pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce"), np.float64)


def parse_truth(value: Any) -> str | None:
    """Return `true` or `false` for true, yes, y, t, 1 or their opposites in any case, else None."""
    return _TRUTH.get(str(value).strip().lower())


def parse_target(value: Any) -> int | None:
    """Return 1 for malignant or a word of `parse_truth` for true, 0 for the opposite, else None."""
    word = str(value).strip().lower()
    return {"true": 1, "malignant": 1, "false": 0, "benign": 0}.get(parse_truth(word) or word)


def parse_column(cells: Iterable[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column `age`, `sex` or `site` to the vocabulary.

    Returns:
        The canonical column (age float64, otherwise text or None), and a mask of the cells whose
        value is not in the vocabulary and became missing.
    """
    convert, cells = CONVERTERS[name], list(cells)
    values = {cell: convert(cell) for cell in dict.fromkeys(cells)}
    invalid = {cell for cell, value in values.items() if value is None and not is_missing(cell)}
    column = np.array([values[cell] for cell in cells], np.float64 if name == "age" else object)
    return column, np.array([cell in invalid for cell in cells], np.bool_)


def column_key(name: Any) -> str:
    """Return the letters and digits of a column name in lower case, for comparisons."""
    return re.sub(r"[\W_]+", "", str(name).lower())


def match_columns(names: Iterable[Any], further: Collection[str] = ()) -> dict[Any, str]:
    """Return the canonical name of each column with a known name; other columns are left out.

    `further` names columns of a model that are not canonical. They match in the same way, unless
    several columns match. `melanoma` is not the target if another malignant class, or `unknown`,
    has a column.
    """
    exact = {*PUBLIC_NAMES, *further}
    present = sorted(names, key=lambda name: name in exact)  # an exact name wins
    by_key = {column_key(name): name for name in present}
    matches: dict[str, Any] = {}
    for key, canonical in COLUMN_KEYS.items():
        if key in by_key:
            matches.setdefault(canonical, by_key[key])
    classes = map(parse_diagnosis, {*present} - {*further})
    if parse_diagnosis(matches.get("target")) and len({*classes} & {*MALIGNANT, "unknown"}) > 1:
        del matches["target"]  # a table with a column per class, of which `melanoma` is one
    keys = Counter(map(column_key, present))
    for name in further:
        key = column_key(name)
        if key not in COLUMN_KEYS and (keys[key] == 1 or by_key.get(key) == name):
            matches[name] = by_key[key]
    return {name: canonical for canonical, name in matches.items()}


PUBLIC_NAMES: Final = frozenset(name for names in COLUMN_NAMES.values() for name in names)
COLUMN_KEYS: Final = {
    column_key(name): canonical for canonical, names in COLUMN_NAMES.items() for name in names
}
"""Key of each public name -> canonical column, in order of precedence."""


def rename_columns(table: pd.DataFrame, further: Collection[str] = ()) -> pd.DataFrame:
    """Rename columns with a known name to their canonical names; see `match_columns`."""
    return table.rename(columns=match_columns(table.columns, further))


def format_cell(cell: Any) -> str:
    """Return a cell as text, "" if missing; whole numbers without decimals."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    return "" if cell is None or str(cell) == "nan" else str(cell)


def normalise_name(value: Any) -> str:
    """Normalise the name of a patient or lesion for comparison.

    The result is in NFC, without surrounding blanks, invisible characters, and `.0` or `,0` after a
    number.
    """
    if not isinstance(value, str):
        value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    name = value if value.isascii() else unicodedata.normalize("NFC", _INVISIBLE.sub("", value))
    name = name.strip()
    return re.sub(r"^(\d+)(\.0+|,00?)$", r"\1", name) if name.endswith("0") else name


def resolve_patients(table: pd.DataFrame) -> "pd.Series[Any]":
    """Return the patient of each row, or else its lesion, or else its image."""
    names = [name for name in ("patient_id", "lesion_id", "image_id") if name in table]
    patients = table[names[0]].astype(object)
    for name in names[1:]:
        patients = patients.where(patients.notna(), table[name])
    return patients


UNITS: Final = ("patient", "lesion", "image")


def name_units(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the unit of `resolve_patients` for each row: `patient`, `lesion` or `image`.

    Cohorts store the resolved name, so a patient with the name of the lesion or image counts as
    unknown.
    """
    patients = resolve_patients(table).astype(str)
    units = pd.Series("patient", index=table.index)
    for unit in ("image", "lesion"):  # a prediction of a lesion has its name in both columns
        if f"{unit}_id" in table:
            units[patients == table[f"{unit}_id"].astype(str)] = unit
    return units


_SPLITS: Final = ("part", "split", "fold", "subset", "set", "partition")


def describe_unused_columns(names: Iterable[str], advice: str = "") -> str:
    """Describe unused columns, with advice for columns of splits; "" if there are none."""
    note = f" (looks like a split{advice})"
    notes = {name: note.replace("COLUMN", name) * (column_key(name) in _SPLITS) for name in names}
    listed = ", ".join(f"{name}{note}" for name, note in notes.items())
    return f"columns not used: {listed}" if listed else ""
