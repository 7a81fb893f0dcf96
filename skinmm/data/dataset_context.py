"""Lesions with others of their patients, from what a network without context made of them."""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch.utils.data import Dataset

from skinmm.data.dataset import Key, Sample

_AROUND: Final = re.compile(r".*/|\.(jpe?g|png|dcm)$", re.IGNORECASE)  # a name in a clinic's table


class Embedded(NamedTuple):
    """Rows as a network without context sees them.

    Attributes:
        plain: log-probabilities.
        features: fused features.
        others: of each row the places of others of its patient, -1 where there are no more.
    """

    plain: Float32[np.ndarray, "n classes"]
    features: Float32[np.ndarray, "n dim"]
    others: Int64[np.ndarray, "n s"]

    @property
    def alone(self) -> Bool[np.ndarray, " n"]:
        """Which rows have no others."""
        return self.others[:, 0] < 0


class ContextDataset(Dataset[Sample]):
    """Rows of a part, addressed by `Key`; they are not augmented."""

    def __init__(
        self, targets: Int[np.ndarray, " n"], embedded: Embedded, places: Int[np.ndarray, " n"]
    ) -> None:
        """Takes the rows' class indices, and where among the embedded ones each is."""
        self._targets, self._embedded, self._places = targets, embedded, places

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._targets)

    def __getitem__(self, key: Key) -> Sample:
        """A row and the others of its patient; where there are fewer, zeros."""
        row, place = key[0], self._places[key[0]]
        plain, features, others = self._embedded
        there = others[place] >= 0
        return Sample(
            row=row,
            target=int(self._targets[row]),
            plain=torch.from_numpy(plain[place]),
            own=torch.from_numpy(features[place]),
            others=torch.from_numpy(np.where(there[:, None], features[others[place]], 0)),
            there=torch.from_numpy(there),
        )


def order_keys(
    image_ids: Sequence[str], records: Float32[np.ndarray, "n columns"] | None
) -> Int64[np.ndarray, " n"]:
    """Numbers that put a patient's rows in an order that is not the table's.

    Whoever has more rows than can be compared with is known by those of the lowest numbers: a
    random choice, but the same wherever the rows stand. Rows of one number are the same row twice.
    """
    parts = [b""] * len(image_ids) if records is None else [row.tobytes() for row in records]
    digests = [
        sha256(_AROUND.sub("", name).encode() + b"|" + part).digest()
        for name, part in zip(image_ids, parts, strict=True)
    ]
    return np.array([int.from_bytes(each[:8], "big", signed=True) for each in digests], np.int64)


def others_of(
    patients: Sequence[str | None], keys: Int64[np.ndarray, " n"], most: int
) -> Int64[np.ndarray, "n most"]:
    """Of each row the places of others of its patient, those of the lowest keys; -1 for no more.

    Rows of the own number are the same row again, and no others.

    Args:
        patients: a name a row, or None for a row that belongs to nobody.
        keys: as `order_keys` gives them.
        most: how many others.
    """
    found = np.full((len(keys), most), -1, np.int64)
    codes = pd.factorize(np.array(patients, dtype=object))[0]  # -1: nobody's
    table = pd.DataFrame({"code": codes, "key": keys}).sort_values(["code", "key"], kind="stable")
    for _, group in table[table["code"] >= 0].groupby("code"):
        rows, own = group.index.to_numpy(), group["key"].to_numpy()
        first = np.unique(own, return_index=True)[1][: most + 1]  # one row of each number
        for row, key in zip(rows, own, strict=True):
            others = rows[first[own[first] != key]][:most]
            found[row, : len(others)] = others
    return found
