"""Protection of a centre's data: refused settings, rare words, keyed hashes of names."""

import hmac
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import permutations
from operator import attrgetter
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import UInt64

from skinmm.config import Config, DataConfig, keys_with
from skinmm.config.remote_commands import FederateClientConfig
from skinmm.config.schema import FEWEST
from skinmm.data.audit import compute_fingerprints
from skinmm.data.datamodule import LesionData
from skinmm.data.lesions import explode_images
from skinmm.data.splits import UNUSED
from skinmm.errors import InputError, format_count
from skinmm.images.source import read_source
from skinmm.vocabulary import SEXES, SITES, name_units, normalise_name, parse_diagnosis

NEVER: Final = 1e6  # minutes between checkpoints: a killed round starts from its beginning
RARE: Final = 5
"""A word, mean or class that fewer patients have does not leave the centre."""
KINDS: Final = ("patient", "lesion", "image")
Tokens = dict[str, dict[str, UInt64[np.ndarray, " n"]]]
"""Keyed hashes by kind, then by role: `trained` or `evaluated`."""


def require_shared(config: Config) -> None:
    """Raise InputError if a server sets a setting without the flag `shared`.

    The others read, upload or execute something of the centre's, train on so few rows that an
    update shows them, or cannot be followed in rounds.
    """
    rules, local = keys_with(Config, "shared"), keys_with(Config, "local")
    for key in keys_with(Config, "explanation"):
        if key in local or "[]" in key:
            continue
        value, default = attrgetter(key)(config), attrgetter(key)(Config())
        rule = rules.get(key)
        if value != default and not (rule(value) if callable(rule) else rule):
            raise InputError(f"{key}={value}: not available in a federation; leave it out")


def localise(config: Config, local: FederateClientConfig, cache: str | None = None) -> Config:
    """Combine the configuration of the server with the local settings of a centre.

    Raises:
        InputError: a setting of the centre has another value at the server, or one of the server
            is refused.
    """
    require_shared(config)
    names = {key.partition(".")[0] for key in keys_with(DataConfig, "local")}
    values, default = {}, DataConfig()
    for name in (item.name for item in fields(DataConfig)):
        value, agreed = getattr(local.data, name), getattr(config.data, name)
        if name in names:
            values[name] = value
        elif value not in (agreed, getattr(default, name)):
            raise InputError(f"data.{name}={value}: the server sets it to {agreed}; leave it out")
    trainer = replace(
        config.trainer,
        accelerator=local.accelerator,
        workers=local.workers,
        devices=1,
        strategy="auto",
        progress=False,
        checkpoint_minutes=NEVER,
    )
    model = replace(
        config.model, pretrained=local.pretrained or config.model.pretrained, cache=cache
    )
    data = replace(config.data, **values)
    return replace(config, data=data, trainer=trainer, model=model, overwrite=local.overwrite)


def require_rows(data: LesionData) -> None:
    """Raise InputError if licences set by the server leave fewer than `FEWEST` training rows."""
    licences, rows = data.config.data.licences, len(data.rows("train"))
    if licences and rows < FEWEST:
        raise InputError(
            f"data.licences={licences}: {format_count(rows, 'training row')} here; at least "
            f"{FEWEST} are needed, as images can be reconstructed from updates of fewer rows"
        )


def require_common_classes(data: LesionData) -> None:
    """Raise InputError if a class outside the vocabulary has fewer than `RARE` patients."""
    patients = data.cohort["patient_id"].groupby(data.cohort["target"].astype(str)).nunique()
    for name in data.classes if data.config.data.target == "diagnosis" else ():
        if patients.get(name, 0) < RARE and not parse_diagnosis(name):
            raise InputError(f"class '{name}' has fewer than {RARE} patients; leave its rows out")


def describe_column(state: dict[str, Any], training: Any) -> dict[str, Any]:
    """Return the fitted state of a record column and its number of rows.

    Without words, mean and scale that fewer patients than `RARE` have. Sexes and sites are words
    of this package, which may be rare.
    """
    cells = training[state["name"]].dropna()
    patients = training.loc[cells.index, "patient_id"]
    counts = patients.groupby(cells.astype(str)).nunique()
    public = {*SEXES, *SITES} if state["name"] in ("sex", "site") else set()
    common = [word for word in state["values"] if counts[word] >= RARE or word in public]
    hidden = {"mean": 0.0, "scale": 1.0, "rows": 0} if patients.nunique() < RARE else {}
    return {**state, "values": common, "rows": len(cells), **hidden}


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


def _hash_kind(rows: pd.DataFrame, kind: str, key: bytes) -> UInt64[np.ndarray, " n"]:
    if kind == "image":
        prints = compute_fingerprints(explode_images(rows), read_source)
        names = {np.packbits(bits).tobytes().hex() for bits in prints.bits}
        return _hash_names(names, kind, key)
    named = rows[name_units(rows) == "patient"] if kind == "patient" else rows
    names = {normalise_name(name) for name in named[f"{kind}_id"].dropna()}
    return _hash_names(names, kind, key)


def _hash_names(names: set[str], kind: str, key: bytes) -> UInt64[np.ndarray, " n"]:
    digests = (hmac.digest(key, f"{kind}\0{name}".encode(), "sha256") for name in names)
    return np.unique(np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64))


def describe_links(centres: Mapping[str, Tokens]) -> list[str]:
    """Describe links from training rows of one centre to evaluated rows of another."""
    leaks = []
    for first, second in permutations(centres, 2):
        for kind in centres[first].keys() & centres[second].keys():
            trained = centres[first][kind]["trained"]
            evaluated = centres[second][kind]["evaluated"]
            if shared := len(np.intersect1d(trained, evaluated)):
                count = format_count(shared, kind)
                leaks.append(f"{count} of {first} (training) in {second} (test)")
    return sorted(leaks)


def to_plain(tokens: Tokens) -> dict[str, Any]:
    """Return tokens as lists, for JSON."""
    return {kind: {role: t.tolist() for role, t in by.items()} for kind, by in tokens.items()}


def from_plain(content: Any) -> Tokens:
    """Parse the tokens of `to_plain` from untrusted input."""
    try:
        return {
            str(kind): {
                role: np.array(content[kind][role], np.uint64) for role in ("trained", "evaluated")
            }
            for kind in content
        }
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"unreadable keyed hashes ({type(error).__name__})") from error
