"""Audit of a split: leaks between parts, near duplicates, shortcuts unrelated to the disease."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from PIL import Image

from skinmm.config.cores import count_cores
from skinmm.data.columns import NOT_AT_BEDSIDE
from skinmm.data.shortcuts import (
    compare_acquisition_groups,
    compute_size_auroc,
    compute_source_auroc,
)
from skinmm.data.splits import UNUSED, find_components
from skinmm.errors import InputError, format_count, require_package
from skinmm.images.decode import decode, probe
from skinmm.images.source import Read
from skinmm.vocabulary import name_units

HASH_SIDE: Final = 16  # 256 bits; with 64 bits, different lesions get the same hash
PICTURE_SIDE: Final = 64  # pixels, input size of a hash of 256 bits
DISTANCE: Final = 30
"""Largest number of bits in which near duplicates differ. Of the 12 pairs of different patients
within 30 bits in 12,788 images of SIIM-ISIC, HAM10000 and ISIC 2017, 11 show the same lesion (by
visual inspection); above 30 bits, small lesions on even skin are confused. Copies with JPEG quality
30, half the size, another aspect ratio, 15 % more light and most crops by 2 % stay within."""
BLOCK: Final = 1024  # rows compared with all others at once
SUSPICIOUS: Final = 0.65  # a warning is given from this AUROC of the image size or the source
MAX_PAIRS: Final = 200
_FITTED_OUTSIDE: Final = "the record encoder was fitted on {} outside the training part"
_ABSENT_ORIGINAL: Final = "duplicates of the same image, which the table does not list"
_UNUSED_ROWS: Final = "linked by patient, lesion or duplicate_of through rows that no part uses"
_SPELLING: Final = (
    "{} ids in two parts differ only in case, spaces or leading zeros: {}; use one spelling of each"
)
_UNCHECKED: Final = {
    "patient": "patients in two parts (no row names a patient)",
    "size": "image sizes as a shortcut (sizes are unknown; skinmm audit near=true reads them)",
    "near duplicate": "near duplicates (skinmm audit near=true compares pixels)",
}
_SIZE_WARNING: Final = (
    "the size of the image file alone reaches AUROC {:.3f}: cameras differ between malignant and "
    "benign; compare every model with this figure, and check results by camera"
)
_SOURCE_WARNING: Final = (
    "the source alone reaches AUROC {:.3f}: centres differ in their share of malignant lesions; "
    "compare models by the AUROC within sources, and train with data.split=source"
)


class Fingerprints(NamedTuple):
    """Perceptual hashes of a cohort.

    Attributes:
        image_id: names of the readable images.
        bits: their hashes.
        sizes: their width and height in pixels.
        unreadable: name -> error message of the images that cannot be read.
    """

    image_id: list[str]
    bits: Bool[np.ndarray, "n bits"]
    sizes: Int64[np.ndarray, "n 2"]
    unreadable: dict[str, str]


def compute_fingerprints(
    table: pd.DataFrame, read: Read, progress: Callable[[], None] = lambda: None
) -> Fingerprints:
    """Decode and hash every image that has a path, on all cores; call `progress` after each one."""
    require_package("imagehash", "comparing pixels", "audit")
    paths = table.set_index("image_id")["path"].dropna()
    results: dict[str, Fingerprint | str] = {}
    with ThreadPoolExecutor(count_cores()) as pool:
        computed = pool.map(lambda path: compute_fingerprint(path, read), paths)
        for image_id, result in zip(paths.index, computed, strict=True):
            results[image_id] = result
            progress()
    unreadable = {name: result for name, result in results.items() if isinstance(result, str)}
    hashes = {name: result for name, result in results.items() if not isinstance(result, str)}
    bits = np.array([bits for bits, _ in hashes.values()], bool).reshape(-1, HASH_SIDE**2)
    sizes = np.array([size for _, size in hashes.values()], np.int64).reshape(-1, 2)
    return Fingerprints(list(hashes), bits, sizes, unreadable)


Fingerprint = tuple[Bool[np.ndarray, " bits"], tuple[int, int]]
"""Hash of one image, and its width and height in pixels."""


def compute_fingerprint(path: str, read: Read) -> Fingerprint | str:
    """Return the fingerprint of one image, or the error message if it cannot be read."""
    try:
        data, frame = read(path)
        pixels = decode(data, size=PICTURE_SIDE, frame=frame)
        info = probe(data)
    except (OSError, InputError) as error:
        return str(error)
    import imagehash

    bits = imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE).hash.ravel()
    return bits, (info.width, info.height)


def find_near_duplicates(fingerprints: Fingerprints, distance: int = DISTANCE) -> pd.DataFrame:
    """Find every pair of images whose hashes differ in at most `distance` bits.

    Returns:
        Columns `first`, `second` (image names) and `bits` (how many differ), nearest first.
    """
    names = np.array(fingerprints.image_id, object)
    signs = fingerprints.bits.astype(np.float32) * 2 - 1
    pairs = [np.empty((0, 3), np.int64)]  # row, later row, distance
    for start in range(0, len(signs), BLOCK):
        # The scalar product of +-1 counts the bits that agree, less those that differ.
        product = signs[start : start + BLOCK] @ signs[start:].T
        differ = ((signs.shape[1] - product) / 2).astype(np.int64)
        row, column = np.nonzero(np.triu(differ <= distance, k=1))
        pairs.append(np.stack([start + row, start + column, differ[row, column]], axis=1))
    first, second, bits = np.concatenate(pairs).T
    table = pd.DataFrame({"first": names[first], "second": names[second], "bits": bits})
    return table.sort_values(["bits", "first", "second"], ignore_index=True)


def audit(
    table: pd.DataFrame,
    *,
    positive: Collection[str] = (),
    columns: Sequence[str] = (),
    fitted_on: Collection[str] = (),
    near: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Check a split cohort for leaks and shortcuts.

    Args:
        table: canonical rows with `part`; unused rows are ignored.
        positive: classes that count as malignant, if the target names classes.
        columns: record columns that the model uses.
        fitted_on: names of the images on whose rows the record encoder was fitted.
        near: near duplicates, as `find_near_duplicates` returns them.

    Returns:
        Plain data: `rows`; `parts`; `named`, the number of rows that name a patient, a lesion or
        an official duplicate, and whose image size is known; `across_parts`, the number of
        patients, lesions, official and near duplicates that occur in two parts, None if not
        checked; `duplicates`, the number of all such pairs; `pairs`, the first ones across parts;
        `size_auroc`, `source_auroc` and `acquisition` (see `skinmm.data.shortcuts`) with
        `warnings`; `unchecked`, one sentence for each check that these data do not allow; `leaks`,
        sentences; and `possible_leaks`, sentences on ids in two parts that differ in spelling.
    """
    used = table[table["part"] != UNUSED]
    pairs = _list_pairs(used, near)
    divided = pairs[pairs["first_part"] != pairs["second_part"]]
    across, named = _list_leaks(used, divided), _count_named(used)
    counts = {kind: len(names) if named.get(kind, 1) else None for kind, names in across.items()}
    unchecked = [kind for kind in ("patient", "size") if not named[kind]]
    if near is None:
        counts["near duplicate"] = None
        unchecked.append("near duplicate")
    linked = {} if any(across.values()) else _list_indirect_leaks(table)
    training = set(table.loc[table["part"] == "train", "image_id"])
    outside = [name for name in fitted_on if name not in training]  # also of unused rows
    return {
        "rows": len(used),
        "parts": {str(part): int(n) for part, n in used["part"].value_counts().items()},
        "named": named,
        "across_parts": counts,
        "duplicates": {str(kind): int(n) for kind, n in pairs["kind"].value_counts().items()},
        "pairs": divided.head(MAX_PAIRS).to_dict("records"),
        **_find_shortcuts(used, positive),
        "unchecked": [_UNCHECKED[kind] for kind in unchecked],
        "possible_leaks": _describe_similar_ids(used),
        "leaks": _describe_leaks(across, linked, columns, outside),
    }


def _find_shortcuts(table: pd.DataFrame, positive: Collection[str]) -> dict[str, Any]:
    """Return the AUROCs that image size alone and source alone reach, with warnings."""
    size, source = compute_size_auroc(table, positive), compute_source_auroc(table, positive)
    return {
        "size_auroc": size,
        "source_auroc": source,
        "acquisition": compare_acquisition_groups(table, positive),
        "warnings": [
            text.format(auroc)
            for auroc, text in ((size, _SIZE_WARNING), (source, _SOURCE_WARNING))
            if auroc is not None and auroc >= SUSPICIOUS
        ],
    }


def _describe_leaks(
    across: Mapping[str, list[str]],
    linked: Mapping[str, list[str]],
    columns: Sequence[str],
    outside: list[str],
) -> list[str]:
    direct = [f"{_count(kind, names)} in two parts" for kind, names in across.items() if names]
    indirect = [f"{_count('pair', n)} in two parts, {how}" for how, n in linked.items() if n]
    forbidden = [f"column {c}: {NOT_AT_BEDSIDE[c]}" for c in columns if c in NOT_AT_BEDSIDE]
    fitted = [_FITTED_OUTSIDE.format(_count("row", outside))] if outside else []
    return [*direct, *indirect, *forbidden, *fitted]


def _count_named(table: pd.DataFrame) -> dict[str, int]:
    """Count the rows with a patient, with a lesion, with an official duplicate and with a size."""
    units = name_units(table)
    columns = {"lesion": "lesion_id", "official duplicate": "duplicate_of", "size": "width"}
    cells = table.reindex(columns=[*columns.values()]).notna().sum()
    named = {kind: int(cells[column]) for kind, column in columns.items()}
    return {"patient": int((units == "patient").sum()), **named}


def _list_leaks(table: pd.DataFrame, divided: pd.DataFrame) -> dict[str, list[str]]:
    """List the patients, lesions and duplicates that occur in more than one part."""
    names = {}
    for kind in ("patient", "lesion"):
        parts = table.groupby(f"{kind}_id")["part"].nunique()
        names[kind] = [str(group) for group in parts.index[parts > 1]]
    for kind in ("official duplicate", "near duplicate"):
        pairs = divided[divided["kind"] == kind]
        names[kind] = (pairs["first"] + " and " + pairs["second"]).tolist()
    return names


def _list_indirect_leaks(table: pd.DataFrame) -> dict[str, list[str]]:
    """List pairs of parts whose rows are linked only by unused rows or absent images."""
    used, named, pairs = table[table["part"] != UNUSED], set[str](), {}
    for how, rows in ((_ABSENT_ORIGINAL, used), (_UNUSED_ROWS, table)):
        component = pd.Series(find_components(rows), index=rows.index)
        ends = used.assign(component=component).drop_duplicates(["component", "part"])
        names = ends.groupby("component")["image_id"].agg(list)
        linked = [" and ".join(map(str, ids[:2])) for ids in names if len(ids) > 1]
        pairs[how] = [pair for pair in linked if pair not in named]
        named.update(linked)
    return pairs


def _describe_similar_ids(table: pd.DataFrame) -> list[str]:
    """Describe patient or lesion ids in different parts that differ only in spelling."""
    named, texts = table[name_units(table) == "patient"], []
    for kind, rows in (("patient", named), ("lesion", table.dropna(subset=["lesion_id"]))):
        column = rows[f"{kind}_id"].astype(str)
        keys = column.str.casefold().str.replace(r"(?<!\d)0+(?=\d)|\s+", "", regex=True)
        ids = pd.DataFrame({"id": column, "part": rows["part"], "key": keys}).drop_duplicates()
        both = ids.merge(ids.drop_duplicates("key"), on="key", suffixes=("", "_first"))
        both = both[(both["id"] != both["id_first"]) & (both["part"] != both["part_first"])]
        if pairs := [*dict.fromkeys(both["id_first"] + " and " + both["id"])]:
            texts.append(_SPELLING.format(kind, _count("pair", pairs)))
    return texts


def _list_pairs(table: pd.DataFrame, near: pd.DataFrame | None) -> pd.DataFrame:
    """List official duplicates, and near duplicates without another link, with their parts."""
    ends = ["first", "second"]
    official = table.reindex(columns=["duplicate_of", "image_id"]).set_axis(ends, axis=1)
    official = official[official["first"].isin(official["second"])]
    near = pd.DataFrame(columns=ends) if near is None else near[ends]
    group = pd.Series(find_components(table), index=table["image_id"])
    near = near[near["first"].isin(group.index) & near["second"].isin(group.index)]
    near = near[group[near["first"]].to_numpy() != group[near["second"]].to_numpy()]
    kinds = {"official duplicate": official, "near duplicate": near}
    pairs = pd.concat(
        [rows.assign(kind=kind).astype(object) for kind, rows in kinds.items()], ignore_index=True
    )
    part = table.set_index("image_id")["part"]
    parts = {f"{end}_part": pairs[end].map(part) for end in ends}
    return pairs[["kind", *ends]].assign(**parts).astype(object)


def _count(kind: str, names: Sequence[str]) -> str:
    return f"{format_count(len(names), kind)} ({', '.join(names[:3])})"
