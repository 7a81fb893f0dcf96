"""Audit across centres: keyed hashes of patients, lesions and images, which the server compares."""

import hashlib
import hmac
from collections.abc import Mapping
from itertools import permutations
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt64

from skinmm.data.audit import compute_fingerprints
from skinmm.data.lesions import explode_images
from skinmm.data.splits import UNUSED
from skinmm.errors import InputError
from skinmm.images.source import read_source
from skinmm.vocabulary import name_units, normalise_name

KINDS: Final = ("patient", "lesion", "image")
BAND: Final = 8
"""Bits of a perceptual hash for which one keyed number stands."""
EQUAL_BANDS: Final = 6
"""Equal bands, of 32, of near duplicates. Hashes that differ in 30 of their 256 bits, at random,
have six or more with probability 0.99, unrelated hashes with 3e-9."""
Tokens = dict[str, dict[str, UInt64[np.ndarray, "n *bands"]]]
"""Keyed hashes by kind, then by role: `trained` or `evaluated`."""


def hash_rows(cohort: pd.DataFrame, kinds: list[str], key: bytes) -> Tokens:
    """Return keyed hashes of a cohort's patients, lesions and images.

    Without the key, which the server never has, they cannot be computed for guessed names.

    Args:
        cohort: canonical rows with their `part`; unused rows are left out.
        kinds: of `KINDS`.
        key: secret that all centres have agreed on.
    """
    if unknown := {*kinds} - {*KINDS}:
        raise InputError(f"audit={min(unknown)}: choose from {', '.join(KINDS)}")
    used = cohort[cohort["part"] != UNUSED]
    tokens: Tokens = {}
    for role, is_role in (("trained", True), ("evaluated", False)):
        rows = used[(used["part"] == "train") == is_role]
        for kind in kinds:
            tokens.setdefault(kind, {})[role] = _hash_kind(rows, kind, key)
    return tokens


def _hash_kind(rows: pd.DataFrame, kind: str, key: bytes) -> UInt64[np.ndarray, "n *bands"]:
    if kind == "image":
        prints = compute_fingerprints(explode_images(rows), read_source)
        return hash_bands(prints.bits, key)
    named = rows[name_units(rows) == "patient"] if kind == "patient" else rows
    names = {normalise_name(name) for name in named[f"{kind}_id"].dropna()}
    return np.unique(np.array([_keyed(key, f"{kind}\0{name}") for name in names], np.uint64))


def hash_bands(bits: Bool[np.ndarray, "n bits"], key: bytes) -> UInt64[np.ndarray, "n bands"]:
    """Return a keyed number for every band of every perceptual hash.

    Near duplicates have many numbers in common, so that they can be found without the hashes.
    """
    bands = np.packbits(bits, axis=1)
    table = [
        [_keyed(key, f"band\0{column}\0{value}") for value in range(2**BAND)]
        for column in range(bands.shape[1])
    ]
    return np.array(table, np.uint64)[np.arange(bands.shape[1]), bands]


def _keyed(key: bytes, text: str) -> int:
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big")


def describe_links(centres: Mapping[str, Tokens]) -> list[str]:
    """Describe what a centre trains on and another evaluates on, by kind and pair of centres."""
    leaks = []
    for first, second in permutations(centres, 2):
        for kind in centres[first].keys() & centres[second].keys():
            trained = centres[first][kind]["trained"]
            evaluated = centres[second][kind]["evaluated"]
            if shared := _count_shared(trained, evaluated):
                plural = "s" if shared > 1 else ""
                leaks.append(f"{shared} {kind}{plural} of {first} (training) in {second} (test)")
    return sorted(leaks)


def _count_shared(
    trained: UInt64[np.ndarray, "n *bands"], evaluated: UInt64[np.ndarray, "k *bands"]
) -> int:
    """Return the number of evaluated units that are, or nearly are, among the trained ones."""
    if trained.ndim == 1:
        return len(np.intersect1d(trained, evaluated))
    return sum(bool(((trained == row).sum(axis=1) >= EQUAL_BANDS).any()) for row in evaluated)


def to_plain(tokens: Tokens) -> dict[str, Any]:
    """Return tokens as lists, for JSON."""
    return {kind: {role: t.tolist() for role, t in by.items()} for kind, by in tokens.items()}


def from_plain(content: Any) -> Tokens:
    """Return the tokens of `to_plain`, from a client that may have sent anything."""
    try:
        return {
            str(kind): {
                role: np.array(content[kind][role], np.uint64) for role in ("trained", "evaluated")
            }
            for kind in content
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"unreadable keyed hashes ({type(error).__name__})") from error
