"""Random damages of cohort tables, read by training and by `predict.py`.

Each damage is given to `load_cohort` and to `Predictor.stream`, with the reader of `predict.py` and
a trained model. Training must read patient, target, image and encoded record of each row as in the
file. Prediction must read the same, and its probability must be that of the undamaged row. A row
whose `error` names the image counts as refused. Some damages are also given to the command
`predict.py`, which must write what the predictor returned.

    python benchmarks/damaged_tables.py [DAMAGES] [SEED] [COMMANDS]

Prints a table of damages and outcomes; exits with 1 after a defect.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from damages import DAMAGES, ROWS, Cohort, Table

from skinmm.cli import main as cli
from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort, require_images
from skinmm.errors import InputError
from skinmm.predict import Predictor
from skinmm.predict.inputs import ImageFolder, read_input
from skinmm.vocabulary import resolve_patients

ROOT: Final = Path(__file__).parents[1]
DEMO: Final = ROOT / "skinmm" / "demo"
TRAINING_ROWS: Final = 96
TRAINING: Final = (
    *("model=tiny", "model.image_size=32", "trainer=debug", "trainer.progress=false"),
    *("evaluation.resamples=0", "report.explain=false"),
)
OUTCOMES: Final = ("read right", "refused", "training refused", "prediction refused", "defects")
CHUNK: Final = 7
TOLERANCE: Final = 1e-5  # of probabilities in batches of other rows
Row = dict[str, Any]
"""`patient`, `target`, `image`, the encoded cells of each column and, in prediction, `probability`;
`image` is None and the others are absent if the row is refused."""


@dataclass(frozen=True)
class Reader:
    """Both readers of one cohort.

    Attributes:
        predictor: a model that was trained on the undamaged cohort.
        checkpoint: file of the model.
    """

    cohort: Cohort
    predictor: Predictor
    checkpoint: Path

    def encode(self, cells: Any, target: Any, paths: list[str | None]) -> list[Row]:
        """Return what a reader passes to the network and to the evaluation."""
        encoder = self.predictor.ensemble.members[0].encoder
        vectors = encoder.transform(cells)
        units = pd.DataFrame({name: cells[name] for name in ("patient_id", "lesion_id")})
        # A cohort stores the name of the image where it does not know the patient.
        patients = [
            None if pd.isna(name) or image == name else str(name)
            for name, image in zip(resolve_patients(units), cells["image_id"], strict=True)
        ]
        numbers = pd.to_numeric(pd.Series(target), errors="coerce")
        return [
            {
                "patient": patients[row],
                "target": None if pd.isna(number) else float(number),
                "image": path and str(Path(path).resolve()),
                **{one.name: tuple(vectors[row, one.start : one.stop]) for one in encoder.layout},
            }
            for row, (number, path) in enumerate(zip(numbers, paths, strict=True))
        ]

    def train(self, file: str) -> list[Row]:
        """Read as `train.py` does."""
        columns, root = self.cohort.columns, str(self.cohort.root)
        data = DataConfig(name="csv", root=root, columns=columns, args={"table": file})
        rows = require_images(load_cohort(data), data.missing).rows
        return self.encode(rows, rows["target"], rows["path"].tolist())

    def predict(self, file: str) -> list[Row]:
        """Read and predict as `predict.py` does."""
        images, reading = ImageFolder(self.cohort.images), []
        tables = read_input(str(self.cohort.root / file), CHUNK)
        for prediction in self.predictor.stream(tables, images):
            table, cells = prediction.table, prediction.cells
            target = table.get("target", np.full(len(table), None))
            paths = [images.find(cell) for cell in cells["image_id"]]
            rows = self.encode(cells, target, paths)
            columns = zip(rows, table["malignancy"], table["error"], strict=True)
            reading += [
                {"image": None} if error else {**row, "probability": probability}
                for row, probability, error in columns
            ]
        return reading

    def run_command(self, file: str) -> tuple[int, list[float]]:
        """Return exit status and probabilities, NaN in refused rows, of the command."""
        output = self.cohort.root / "output.csv"
        output.unlink(missing_ok=True)
        settings = [f"checkpoint={self.checkpoint}", f"input={self.cohort.root / file}"]
        settings += [f"images={self.cohort.images}", f"output={output}", "accelerator=cpu"]
        command = [sys.executable, "predict.py", *settings, "overwrite=true"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(  # noqa: S603
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        table = pd.read_csv(output) if output.exists() else pd.DataFrame({"malignancy": []})
        return done.returncode, table["malignancy"].tolist()


def make_demo(root: Path) -> tuple[Cohort, list[str]]:
    """Copy rows of the included cohort; return it and the settings to train on it."""
    table = pd.read_csv(DEMO / "cohort.csv", dtype=str, keep_default_na=False)
    table = pd.concat([part.head(ROWS // 2) for _, part in table.groupby("target")])
    (root / "images").mkdir(parents=True)
    for name in table["image_id"]:
        copy(DEMO / "images" / f"{name}.jpg", root / "images")
    rows = Table(table.columns.tolist(), table.to_numpy().tolist(), list(range(len(table))))
    return Cohort(root, root / "images", ["age", "sex", "site"], rows), ["data=demo"]


def make_clinic(root: Path) -> tuple[Cohort, list[str]]:
    """Write a cohort with patients, two more columns, and one stem in several files."""
    pictures = sorted((DEMO / "images").glob("*.jpg"))
    folders = ("left", "rücken")
    for folder in folders:
        (root / folder).mkdir(parents=True)
    names = ["image", "patient_id", "lesion_id", "age", "sex", "site", "smoker", "diameter"]
    names += ["diagnosis", "target", "remark"]
    rows = []
    for row in range(TRAINING_ROWS):
        folder, malignant = folders[row % 2], row % 3 == 0
        file = f"{folder}/M{row // 2:03d}{'.jpeg' if row % 5 == 0 else '.jpg'}"
        copy(pictures[row], root / file)
        if row % 7 == 0:
            copy(pictures[row + TRAINING_ROWS], (root / file).with_suffix(".png"))
        cells = [file, str(100 + row // 2), f"L{row:02d}", f"{30 + row % 60}.5"]
        cells += [("male", "female")[row % 2], ("torso", "head/neck")[row // 2 % 2]]
        cells += [("yes", "no")[row % 3 % 2], f"{2 + row / 4}", ("nv", "mel")[malignant]]
        rows.append([*cells, str(int(malignant)), f"was née {row}"])
    table = Table(names, rows, list(range(TRAINING_ROWS)))
    (root / "training.csv").write_text(table.text(), encoding="utf-8")
    columns = ["age", "sex", "site", "smoker", "diameter"]
    cohort = Cohort(root, root, columns, Table(names, rows[:ROWS], list(range(ROWS))))
    settings = ["data=csv", f"data.root={root}", "+data.args.table=training.csv"]
    return cohort, [*settings, f"data.columns=[{','.join(columns)}]"]


def make_reader(make: Callable[[Path], tuple[Cohort, list[str]]], root: Path) -> Reader:
    """Write a cohort, and train a model on it."""
    cohort, settings = make(root)
    run, output = root.with_name(f"{root.name}-run"), StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = cli.train([*TRAINING, *settings, f"hydra.run.dir={run}"])
    if status:
        raise SystemExit(f"training fails:\n{output.getvalue()}")
    checkpoint = run / "checkpoints" / "best.ckpt"
    return Reader(cohort, Predictor.from_checkpoints([checkpoint], "cpu"), checkpoint)


def compare(table: Table, expected: list[Row], readings: list[list[Row] | str]) -> tuple[str, str]:
    """Return the outcome of a damage, and the first defect."""
    names = ("training", "prediction")
    for name, reading in zip(names, readings, strict=True):
        if not isinstance(reading, str) and (defect := find_error(table, expected, reading, name)):
            return "defects", defect
    refused = [
        isinstance(reading, str) or any(row["image"] is None for row in reading)
        for reading in readings
    ]
    tables = [reading for reading in readings if not isinstance(reading, str)]
    for number, rows in enumerate(zip(*tables, strict=True)):
        if defect := find_difference(*rows):
            return "defects", f"row {number}, {defect}"
    if all(refused) or not any(refused):
        return ("refused" if refused[0] else "read right"), ""
    return f"{names[refused.index(True)]} refused", ""


def find_difference(training: Row, prediction: Row | None = None) -> str:
    """Return what two readings of a row have different; empty for a refused row."""
    if prediction is None or None in (training["image"], prediction["image"]):
        return ""
    # Training derives targets from diagnoses where the table has none; prediction copies them.
    keys = [key for key in training if key != "target" or prediction[key] is not None]
    different = (key for key in keys if training[key] != prediction[key])
    return next((f"{k}: {training[k]} in training, {prediction[k]}" for k in different), "")


def find_error(table: Table, expected: list[Row], reading: list[Row], name: str) -> str:
    """Return the first cell that a reader gets wrong; empty if it gets none wrong."""
    if len(reading) != len(table.order):
        return f"{name} reads {len(reading)} of {len(table.order)} rows"
    for number, (row, source) in enumerate(zip(reading, table.order, strict=True)):
        if number in table.unsure or row["image"] is None:
            continue
        for key, value in row.items():
            right = expected[source][key]
            if key == "probability":
                is_right = abs(value - right) < TOLERANCE or bool(table.unsure_columns)
                is_right |= number in table.images  # perhaps another image
            elif key == "image":
                right = table.images.get(number, {right})
                is_right = value in right
            else:
                is_right = value == right or key in table.unsure_columns
            if not is_right:
                return f"{name}, row {number}, {key}: {value}, must be {right}"
    return ""


def read(reader: Callable[[str], list[Row]], file: str) -> list[Row] | str:
    """Return what a reader gets, or its message."""
    try:
        with redirect_stderr(StringIO()):
            return reader(file)
    except InputError as error:
        return str(error)


def compare_command(reader: Reader, table: Table, reading: list[Row] | str) -> str:
    """Return how the command differs from the predictor; empty if it does not."""
    status, probabilities = reader.run_command(table.file)
    if isinstance(reading, str):
        return "" if status not in (0, 3) else f"exit status {status}, must be refused: {reading}"
    expected = [row.get("probability", np.nan) for row in reading]
    if len(expected) == len(probabilities) and np.allclose(
        expected, probabilities, atol=TOLERANCE, equal_nan=True
    ):
        return ""
    if status not in (0, 3) and np.isnan(expected).all():  # no image next to the table
        return ""
    return f"exit status {status}, {probabilities} in place of {expected}"


def run_damages(
    readers: list[tuple[Reader, list[Row]]], damages: int, seed: int, commands: int
) -> Iterator[tuple[str, str, str]]:
    """Yield name, outcome and defect of each damage."""
    names = list(DAMAGES)
    step = (damages // commands - 1) | 1 if commands else damages + 1
    for number in range(damages):
        name = names[number % len(names)]
        reader, expected = readers[number // len(names) % 2]
        table = DAMAGES[name](np.random.default_rng((seed, number)), reader.cohort)
        data = table.text().encode() if table.data is None else table.data
        (reader.cohort.root / table.file).write_bytes(data)
        readings = [read(reader.train, table.file), read(reader.predict, table.file)]
        outcome, defect = compare(table, expected, readings)
        yield name, outcome, f"{name} ({number}): {defect}" if defect else ""
        if number % step == step - 1:
            defect = compare_command(reader, table, readings[1])
            defect = f"{name} ({number}): predict.py: {defect}" if defect else ""
            yield "predict.py", "defects" if defect else "as the predictor", defect


def main(damages: int = 2000, seed: int = 0, commands: int = 50) -> int:
    """Print the table of damages and outcomes."""
    torch.set_num_threads(1)
    counts = {name: Counter[str]() for name in DAMAGES}
    compared, defects = Counter[str](), []
    with TemporaryDirectory() as folder:
        readers = []
        for make in (make_demo, make_clinic):
            reader = make_reader(make, Path(folder) / make.__name__)
            table = reader.cohort.table
            (reader.cohort.root / "clean.csv").write_text(table.text(), encoding="utf-8")
            expected = reader.predict("clean.csv")
            readings: list[list[Row] | str] = [reader.train("clean.csv"), expected]
            if compare(table, expected, readings) != ("read right", ""):
                raise SystemExit("the readers differ without a damage")
            readers.append((reader, expected))
        for name, outcome, defect in run_damages(readers, damages, seed, commands):
            counts.get(name, compared)[outcome] += 1
            if defect:
                defects.append(defect)
                print(defect, file=sys.stderr, flush=True)
    print(f"| damage | {' | '.join(OUTCOMES)} |\n|---|{'---:|' * len(OUTCOMES)}")
    total = sum(counts.values(), Counter[str]())
    for name, row in {**counts, "**all**": total}.items():
        print(f"| {name} | {' | '.join(str(row[outcome]) for outcome in OUTCOMES)} |")
    print(f"\npredict.py: {dict(compared)}")
    return int(bool(defects))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
