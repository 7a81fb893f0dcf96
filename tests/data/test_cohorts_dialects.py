"""One cohort in every dialect of tables is one cohort, in training and in prediction."""

import csv
import gzip
import math
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.predict.inputs import read_input
from skinmm.predict.pipeline import TableBatch

COLUMNS: Final = ["age", "sex", "site", "diameter", "itch"]
TEXT: Final = st.text(st.sampled_from("a \"',;\t\n=é"), max_size=6)
DECIMALS: Final = st.integers(1, 9999).flatmap(
    lambda number: st.sampled_from([number / 10, number / 100, number / 1000, float(number)])
)
SPELLINGS: Final = {
    "public": {"image": "image_name", "age": "age_approx", "site": "localization"},
    "capitals": {name: name.upper() for name in ("image", "patient_id", "age", "sex", "target")},
    "blanks": {"patient_id": " Patient ID ", "sex": "Gender ", "target": " Target"},
    "plain": {},
}


@st.composite
def cohorts(draw: st.DrawFn) -> pd.DataFrame:
    """Typed cohorts of four to nine rows; the first row has no missing value."""
    size = draw(st.integers(4, 9))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        rest = st.lists(st.none() | values, min_size=size - 1, max_size=size - 1)
        return [draw(values), *draw(rest)]

    return pd.DataFrame(
        {
            "image": [f"I{row}" for row in range(size)],
            "patient_id": pd.array(column(st.integers(98, 102)), "Int64"),
            "age": pd.array(column(st.integers(0, 240).map(lambda half: half / 2)), "Float64"),
            "sex": column(st.sampled_from(["female", "male"])),
            "site": column(st.sampled_from(["torso", "head/neck"])),
            "diameter": pd.array(column(DECIMALS), "Float64"),
            "itch": pd.array(column(st.booleans()), "boolean"),
            "note": [draw(TEXT) for _ in range(size)],
            "target": [row % 2 for row in range(size)],
        }
    )


def expect(table: pd.DataFrame) -> pd.DataFrame:
    """The canonical rows that every dialect of the table means."""
    patients = [
        image if pd.isna(patient) else str(patient)
        for image, patient in zip(table["image"], table["patient_id"], strict=True)
    ]
    itch = [None if pd.isna(cell) else str(cell).lower() for cell in table["itch"]]
    numbers = {name: table[name].to_numpy(float, na_value=math.nan) for name in ("age", "diameter")}
    words = {
        name: table[name].astype(object).where(table[name].notna(), None)
        for name in ("sex", "site")
    }
    rows = {"image_id": table["image"], "patient_id": patients, **words, **numbers, "itch": itch}
    return pd.DataFrame({**rows, "target": table["target"]})


def write(table: pd.DataFrame, path: Path, draw: Any) -> None:
    """Write the table as pandas, Excel or LibreOffice do; numbers may have decimal commas."""
    names = draw(st.permutations(table.columns.tolist()))
    table = table[names].rename(columns=draw(st.sampled_from(list(SPELLINGS.values()))))
    if draw(st.booleans()):  # as pandas reads integers with missing cells
        floats = {name for name in table if str(table[name].dtype) == "Int64"}
        table = table.astype(dict.fromkeys(floats, "Float64"))
    if path.suffix == ".xlsx":
        table.to_excel(path, index=False)
        return
    if path.suffix == ".parquet":
        table.to_parquet(path, index=draw(st.booleans()))
        return
    truth = draw(st.sampled_from([("True", "False"), ("TRUE", "FALSE"), ("1", "0"), ("yes", "no")]))
    table["itch"] = table["itch"].map({True: truth[0], False: truth[1]})
    sep, ending = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    text = table.to_csv(
        sep=sep,
        index=draw(st.booleans()),
        decimal=draw(st.sampled_from(".,")),
        na_rep=draw(st.sampled_from(["", "NA", "nan"])),
        quoting=quoting,
        lineterminator=ending,
    )
    head = draw(st.sampled_from(["", f"sep={sep}{ending}", ending]))
    data = (head + text).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@settings(deadline=None, max_examples=60)
@given(
    table=cohorts(),
    suffix=st.sampled_from([".csv", ".tsv", ".csv.gz", ".xlsx", ".parquet"]),
    chunk=st.integers(1, 10),
    data=st.data(),
)
def test_every_dialect_is_the_same_cohort(
    table: pd.DataFrame,
    suffix: str,
    chunk: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if suffix in (".xlsx", ".parquet"):
        pytest.importorskip("openpyxl" if suffix == ".xlsx" else "pyarrow")
        # openpyxl normalises blanks.
        assume(not re.search(r"[\t\n]", "".join(table["note"])))
    path = tmp_path_factory.getbasetemp() / f"cohort{suffix}"
    write(table, path, data.draw)
    expected = expect(table)
    config = DataConfig(
        name="csv", root=str(path.parent), columns=COLUMNS, args={"table": path.name}
    )
    try:
        rows = load_cohort(config).rows
    except InputError as error:
        # 1,033 alone can also mean a thousand.
        assert re.search(r"column 'diameter': '\d{1,3},\d{3}' can mean", str(error))  # noqa: PT017
        return
    rows["itch"] = [None if pd.isna(cell) else is_true(cell) for cell in rows["itch"]]
    expected["itch"] = [None if pd.isna(cell) else is_true(cell) for cell in expected["itch"]]
    names = expected.columns.tolist()
    pd.testing.assert_frame_equal(rows[names], expected, check_dtype=False)
    encoder = RecordEncoder.fit(expected, COLUMNS)
    read = [
        encoder.transform(TableBatch(part, COLUMNS, needs_image=True).cells)
        for part in read_input(str(path), chunk)
    ]
    np.testing.assert_array_equal(np.concatenate(read), encoder.transform(expected))


def is_true(cell: Any) -> str:
    """Return `true` or `false` for the spellings that the tables use."""
    return {"1": "true", "yes": "true", "0": "false", "no": "false"}.get(
        str(cell).lower().removesuffix(".0"), str(cell).lower()
    )
