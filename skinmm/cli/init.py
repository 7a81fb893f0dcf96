"""`skinmm init`: infer the columns of a user's table, and write a data configuration for it."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import yaml

from skinmm.config import DataConfig
from skinmm.config.data_commands import InitConfig
from skinmm.errors import InputError, print_line, require_new_output, warn
from skinmm.files import IMAGE_SUFFIXES, TABLE_SUFFIXES, atomic_write, list_tables
from skinmm.vocabulary import CONVERTERS

if TYPE_CHECKING:
    import pandas as pd

ROWS: Final = 3
CELL: Final = 24  # characters of a cell that are printed
INCOMPLETE: Final = 3
"""Exit status if the configuration was written but cannot be used yet."""


def init(config: InitConfig) -> int:
    """Print inferred columns and first rows, write the configuration, print the next commands."""
    from skinmm.data.cohorts import load_cohort
    from skinmm.data.cohorts.tables import read_table
    from skinmm.data.cohorts.targets import find_one_hot
    from skinmm.data.mapping import MAPPED, infer_columns
    from skinmm.images.finder import list_visible
    from skinmm.report.terminal import format_columns

    root = Path(config.input).absolute()
    if not root.is_dir():
        state = "is a file" if root.is_file() else "no such folder"
        raise InputError(
            f"{config.input}: {state}; give the folder of a table, of images, or of both"
        )
    name = config.name or root.name.lower().replace(" ", "_")
    output = Path(config.output).absolute() if config.output else root / "conf"
    file = output / "data" / f"{name}.yaml"
    require_new_output("output", file, overwrite=config.overwrite)
    pictures = [path for path in list_visible(root) if path.suffix.lower() in IMAGE_SUFFIXES]
    source = _find_table(root, config.table, pictures)
    table = read_table(root / source)
    columns = infer_columns(table, {path.stem for path in pictures})
    print_line(f"{root / source}: {len(table):,} rows; {len(pictures):,} images below {root}")
    print_line(", ".join(f"{key} <- {columns.get(key, '(none)')}" for key in MAPPED))
    marks = find_one_hot(table.drop(columns=list(columns.values())))
    is_labelled = bool(marks or {"target", "diagnosis"} & {*columns})
    taken = {*columns.values(), *marks}
    if unused := [str(column) for column in table if column not in taken]:
        use = " (to use: data.columns=[age,sex,site,COLUMN])" if is_labelled else ""
        print_line(f"not used: {', '.join(unused)}{use}")
    folders = _find_folders(root, pictures, table.get(columns.get("image_id", ""), ()))
    args = {"table": source, "columns": columns, "images": folders}
    settings: dict[str, Any] = {"name": "csv", "root": str(root), "args": args}
    data = DataConfig(**settings)
    edit, status = "which you can edit", 0
    try:
        rows = load_cohort(data).rows
    except InputError as error:
        print_line(format_columns([*table], _format_rows(table.head(ROWS))))
        status = INCOMPLETE
        problem, edit = _explain(str(error), columns, file)
        warn(problem)
    else:
        names = [key for key in MAPPED if key in columns or key == "target"]
        print_line(f"first of {len(rows):,} rows ({int(rows['target'].sum()):,} malignant):")
        print_line(format_columns(names, _format_rows(rows[names].head(ROWS))))
    _write(file, settings)
    used = f"--config-dir {shlex.quote(str(output))} data={name}"
    print_line(f"configuration: {file}, {edit}\n{'afterwards' if status else 'next'}:")
    fusion = "" if {*CONVERTERS} & {*columns} else " fusion=image_only"
    print_line(f"  skinmm audit {used}\n  python train.py {used}{fusion}")
    print_line(f"(export SKINMM_CONF={shlex.quote(str(output))} replaces --config-dir)")
    return status


def _explain(error: str, columns: dict[str, str], file: Path) -> tuple[str, str]:
    """Return what prevents the use of a configuration, and what it means for the configuration."""
    absent = re.findall(r"\+data\.args\.columns\.(\w+)=COLUMN", error)
    if not absent:
        return error, "which cannot be used as it is"
    meanings = {"target": " (1 is malignant)", "diagnosis": " (names of diagnoses)"}
    choices = " or ".join(f"`{name}: COLUMN`{meanings.get(name, '')}" for name in absent)
    how = f"add {choices} to `columns`" if columns else f"write below `columns:` {choices}"
    return f"{error.partition('; name it')[0]}; {how} in {file}", "which you must complete first"


def _find_table(root: Path, named: str | None, pictures: list[Path]) -> str:
    names = list_tables(root)
    if named and not (root / named).is_file():
        raise InputError(f"table={named}: no such file in {root}; it has {', '.join(names[:9])}")
    if named:
        return named
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(f"{root}: several tables; choose one: table={' or table='.join(names)}")
    folders = sorted({path.relative_to(root).parts[0] for path in pictures if path.parent != root})
    hint = f"; for a folder per class ({', '.join(folders)}) use data=image_folder data.root={root}"
    raise InputError(
        f"{root}: no table ({', '.join(TABLE_SUFFIXES)}){hint if len(folders) > 1 else ''}"
    )


def _find_folders(root: Path, pictures: list[Path], cells: Iterable[Any]) -> list[str]:
    """Return the folders below `root` to which image paths in the table are relative."""
    parents = {PurePosixPath(str(cell).replace("\\", "/")).parent.as_posix() for cell in cells}
    folders = set[str]()
    for folder in {"/" + path.parent.relative_to(root).as_posix() for path in pictures}:
        ends = [f"/{parent}" for parent in parents - {"."} if folder.endswith(f"/{parent}")]
        folders |= {folder.removesuffix(end) for end in ends}
        folders |= {folder} if "." in parents or not ends else set()
    return sorted("" if folder == "/." else folder.removeprefix("/") for folder in folders)


def _write(file: Path, settings: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    with atomic_write(file) as partial:
        partial.write_text(f"# canonical column: column of your table\n{text}", encoding="utf-8")


def _format_rows(rows: "pd.DataFrame") -> list[list[str]]:
    return [
        ["" if cell is None or cell != cell else f"{cell}"[:CELL] for cell in row]  # noqa: PLR0124
        for row in rows.astype(object).itertuples(index=False)
    ]
