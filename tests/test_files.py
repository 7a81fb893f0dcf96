"""Tables are read as they were written or refused by row; files appear complete or not at all."""

import csv
import gzip
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinmm.errors import InputError
from skinmm.files import atomic_write, read_table, read_table_chunks
from skinmm.vocabulary import COLUMN_NAMES

PRINTABLE = st.characters(categories=["L", "N", "P", "S"])
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
SINGLE_LINE = {name for names in COLUMN_NAMES.values() for name in names}
SINGLE = CELLS.filter(lambda cell: not re.search(r"[\r\n]", cell))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Tables whose cells contain any text; line breaks only in columns that may have them."""
    more = draw(st.lists(st.text(PRINTABLE, min_size=1, max_size=5), max_size=3))
    names = list(dict.fromkeys(["image_id", *more, "a note"]))
    row = st.tuples(*[SINGLE if name in SINGLE_LINE else CELLS for name in names])
    return pd.DataFrame(draw(st.lists(row, min_size=1, max_size=6)), columns=names, dtype=str)


def read_chunks(path: Path, size: int = 100, skip: int = 0) -> pd.DataFrame:
    chunks = list(read_table_chunks(path, size, skip=skip))
    return pd.concat(chunks, ignore_index=True) if chunks else pd.DataFrame()


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding, newline="")
    return path


@settings(deadline=None, max_examples=200)
@given(
    table=tables(),
    dialect=st.fixed_dictionaries(
        {
            "sep": st.sampled_from(",;\t|"),
            "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
            "lineterminator": st.sampled_from(["\n", "\r\n"]),
        }
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    states_separator=st.booleans(),
    suffix=st.sampled_from([".csv", ".txt", ".csv.gz"]),
    size=st.integers(1, 7),
)
def test_what_was_written_is_read(
    table: pd.DataFrame,
    dialect: dict[str, Any],
    encoding: str,
    states_separator: bool,
    suffix: str,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"table{suffix}"
    is_clear = not re.search(r'[,;\t|"]', "".join(map(str, table)))
    lead = "" if is_clear and not states_separator else f"sep={dialect['sep']}\n"
    data = (lead + table.to_csv(index=False, **dialect)).encode(encoding)
    path.write_bytes(gzip.compress(data) if suffix == ".csv.gz" else data)
    pd.testing.assert_frame_equal(read_table(path), table)
    pd.testing.assert_frame_equal(read_chunks(path, size), table)
    if len(table) > 1:
        skipped = table.iloc[1:].reset_index(drop=True)
        pd.testing.assert_frame_equal(read_chunks(path, size, skip=1), skipped)


@settings(deadline=None, max_examples=300)
@given(
    lines=st.lists(st.lists(st.sampled_from(["", " ", "a", '"', '"b"', "\t", "ü"]), max_size=4)),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_both_ways_to_read_agree(
    lines: list[list[str]], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(",".join(line) + ending for line in [["image_id", "sex", "note"], *lines])
    path = write(tmp_path_factory.getbasetemp() / "any.csv", text)
    outcomes = []
    for read in (read_table, read_chunks):
        try:
            outcomes.append(str(read(path).to_numpy().tolist()))
        except InputError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].startswith(("[", f"{path}: row "))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        (" ,\n", "the table is empty"),
        ("image,sex\na,male\n\nb\n", "row 4 has 1 cells, the header has 2"),
        ("image,sex\na,male\nb,male,55\n", "row 3 has 3 cells, the header has 2"),
        ("image,sex\na,male,55\n", "row 2 has 3 cells, the header has 2"),
        ("\n<!DOCTYPE html>\n<html>\n", r"cannot be read \(an HTML page and no table"),
        ("image,p,\na,0,5\n", "row 2 has a cell in a column without a name"),
        ("image,sex, sex\na,male,male\n", "2 columns are called 'sex'"),
        (",image,,sex\n0,a,x,male\n", "2 columns are called ''"),
        ('image,sex\na,male\n"b,male\n', "row 3 is not CSV .*close each quotation mark"),
        ('image,sex\n"a"b,male\n', "row 2 is not CSV"),
        ('image,sex\n"a\nb",male\n', "row 2, column image: the cell contains a line break"),
        ('image,note,sex\na,x,"male\nb,y,f"\n', "row 2, column sex: .* before 'male"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "patients.csv", text)
    for read in (read_table, read_chunks):
        with pytest.raises(InputError, match=rf"patients\.csv: {message}"):
            read(path)


def test_other_encodings_are_refused_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "patients.csv", "image,site\na,Rücken\n", "cp1252")
    with pytest.raises(InputError, match=r"patients\.csv: not UTF-8 text .*byte 0xfc.*'CSV UTF-8'"):
        read_table(path)
    write(path, "image,site\na,back\n", "utf-16-le")
    with pytest.raises(InputError, match=r"patients\.csv: .*UTF-16 without a byte order mark"):
        read_table(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        read_table(tmp_path / "nowhere.csv")
    near = write(tmp_path / "patients.csv", "image,sex\na,male\n")
    with pytest.raises(InputError, match=rf"patient\.csv: no such file; did you mean {near}\?"):
        read_table(tmp_path / "patient.csv")
    with pytest.raises(InputError, match=r"notes\.txt: no such file$"):
        read_table(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"b\.csv: no such file$"):
        read_table(tmp_path / "nowhere" / "b.csv")
    for suffix in (".csv.gz", ".parquet", ".xlsx"):
        path = write(tmp_path / f"broken{suffix}", "image,sex\na,male\n")
        with pytest.raises(InputError, match=rf"broken\{suffix}: cannot be read"):
            read_table(path)


def test_blank_lines_and_unnamed_columns_at_the_end_are_dropped(tmp_path: Path) -> None:
    text = "\n image ;sex;;\n\na;male;;\n  \n;;;\nb;f;;\n\n"
    table = read_table(write(tmp_path / "patients.csv", text))
    assert table.to_dict("list") == {"image": ["a", "", "b"], "sex": ["male", "", "f"]}
    quoted = write(tmp_path / "patients.csv", text.replace("male", '"male"'))
    pd.testing.assert_frame_equal(read_table(quoted), table)


def test_an_empty_cell_of_a_single_column_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "patients.csv", "image\na\n\n b\n")
    for read in (read_table, read_chunks):
        assert read(path)["image"].tolist() == ["a", "", " b"]


def test_only_some_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "patients.csv", "image\tage\tsex\na\t5\tf\n")
    assert read_table(path, only=["sex", "image", "site"]).columns.tolist() == ["image", "sex"]


def test_a_header_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    path = write(tmp_path / "patients.csv", "image,sex\n")
    assert read_table(path).columns.tolist() == ["image", "sex"]
    assert list(read_table_chunks(path, 5)) == []


def test_parquet_numbers_are_as_short_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(
        {
            "image_id": ["007", None, "é\n"],
            "patient_id": pd.array([7, None, 9], dtype="Int64"),
            "age": [55.0, 61.5, None],
        }
    )
    table.to_parquet(tmp_path / "patients.parquet", index=False)
    expected = {
        "image_id": ["007", "", "é\n"],
        "patient_id": ["7", "", "9"],
        "age": ["55", "61.5", ""],
    }
    assert read_table(tmp_path / "patients.parquet").to_dict("list") == expected
    objects = read_chunks(tmp_path / "patients.parquet", 2, skip=1)
    assert objects["patient_id"].tolist() == [None, 9]
    table.head(0).to_parquet(tmp_path / "empty.parquet", index=False)
    assert read_table(tmp_path / "empty.parquet").columns.tolist() == list(expected)


def test_excel(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path, book = tmp_path / "patients.xlsx", openpyxl.Workbook()
    rows = [[" image", "age", "seen", None], ["007", 55, None], [], [7, 61.5, "2024-01-02"], [None]]
    for row in rows:
        book.active.append(row)
    book.save(path)
    expected = {"image": ["007", "7"], "age": ["55", "61.5"], "seen": ["", "2024-01-02"]}
    assert read_table(path).to_dict("list") == expected
    with path.open("rb") as file:
        chunks = list(read_table_chunks(path, 1, file=BytesIO(file.read())))
    assert [len(chunk) for chunk in chunks] == [1, 1]
    book.active.append([1, 2, 3, 4])
    book.save(path)
    with pytest.raises(InputError, match=r"patients\.xlsx: row 6 has 4 cells, the header has 3"):
        read_table(path)
    book.create_sheet("empty")
    book.create_sheet("legend").append(["sex", "1: male"])
    book.save(path)
    with pytest.raises(InputError, match=r"several sheets \(Sheet, legend\); leave one"):
        read_table(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as partial:
        partial.write_text("new \udcff", "utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_merged_cell_counts_for_all_its_rows(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in (["patient_id", "image_id"], ["P1", "a"], [None, "b"], ["P2", "c"]):
        book.active.append(row)
    book.active.merge_cells("A2:A3")
    book.save(tmp_path / "a.xlsx")
    assert read_table(tmp_path / "a.xlsx")["patient_id"].tolist() == ["P1", "P1", "P2"]
    book.active.merge_cells("A4:A90000")  # rows without other cells are none
    book.active.merge_cells("C1:D1")
    for number, value in enumerate(("size", 7, 8, 9), 1):
        book.active.cell(number, 3, value)
    book.active.cell(90001, 1, "Source: clinic X")
    book.active.merge_cells("A90001:C90001")
    book.save(tmp_path / "a.xlsx")
    table = read_table(tmp_path / "a.xlsx")
    assert table["patient_id"].tolist() == ["P1", "P1", "P2", "Source: clinic X"]
    assert table["image_id"].tolist() == ["a", "b", "c", ""]
    assert table["size"].tolist() == ["7", "8", "9", ""]


def test_a_wrong_size_in_an_excel_file_loses_no_row(tmp_path: Path) -> None:
    from zipfile import ZipFile

    from openpyxl import Workbook

    book = Workbook()
    for row in range(20):
        book.active.append([f"{row}" if row else "age", "x" if row else "image_id"])
    book.save(tmp_path / "a.xlsx")
    with ZipFile(tmp_path / "a.xlsx") as old, ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'ref="A1:B20"', b'ref="A1:B10"'))
    assert len(read_table(tmp_path / "b.xlsx")) == 19
