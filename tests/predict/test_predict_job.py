"""`predict.py` as a person uses it: a table in, a table out, an exit status, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, cohort_of, command, files_in

from skinmm.cli import main
from skinmm.evaluation.predictions import read_predictions
from skinmm.predict import Predictor
from skinmm.predict.job import CHUNK, PROBED_ROWS

Said = pytest.CaptureFixture[str]
COLUMNS = ["image_id", "age", "sex", "site", "patient_id", "target"]


def patients(run: Path, path: Path, rows: int = 30) -> pd.DataFrame:
    """Writes a list of patients as a clinic has one."""
    table = cohort_of(run)[COLUMNS].head(rows)
    table.to_csv(path, index=False)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def predict(checkpoint: Path | str, source: Path, output: Path, *overrides: str) -> int:
    return main.predict(
        [f"checkpoint={checkpoint}", f"input={source}", f"output={output}", *overrides]
    )


def test_the_command_says_what_the_predictor_says(
    both: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    table = patients(both, tmp_path / "in.csv")
    status = predict(best(both), tmp_path / "in.csv", tmp_path / "out.csv", f"images={pictures}")
    assert status == 0
    assert files_in(tmp_path) == {"in.csv", "out.csv"}
    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, dtype={"target": str})
    expected = Predictor.from_checkpoints([best(both)]).predict(table, pictures)
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, rtol=1e-8)
    judged = read_predictions(tmp_path / "out.csv")
    assert judged.target.tolist() == table["target"].astype(int).tolist()


def test_a_real_command_takes_strange_names_and_keeps_bad_rows(
    both: Path, larger: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Läsionen (1) = a, b #2"
    folder.mkdir()
    for number, run in enumerate((both, larger)):
        shutil.copy(best(run), folder / f"epoch={number}.ckpt")
    table = cohort_of(both)[["image_id", "sex"]].head(6).astype(object)
    for name in table["image_id"]:
        shutil.copy(pictures / f"{name}.jpg", folder)
    table.loc[1, "image_id"] = "nowhere.jpg"
    table.loc[2, "sex"] = "divers"
    table = table.rename(columns={"image_id": "image_name"}).assign(Wert=50)
    table.to_csv(folder / "patients (1).csv", index=False, sep=";", encoding="utf-8-sig")
    before = files_in(tmp_path)
    # The images lie beside the table, so their folder need not be named.
    done = command(
        "predict.py",
        f"checkpoint={folder.name}/epoch=*.ckpt",
        f"input={folder.name}/patients (1).csv",
        f"output={folder.name}/out.csv",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"predictions: {folder.name}/out.csv (6 rows: 5 refer; by torch)\n"
    lacking, *counted = done.stderr.splitlines()
    assert lacking.startswith("no column for age (e.g. age, age_approx, age_approximate), site (")
    assert lacking.endswith("; columns not used: Wert")
    assert counted == [
        "sex: 1 unknown values treated as missing: 'divers' (1)",
        "1 of 6 rows not predicted; see the column error",
    ]
    assert files_in(tmp_path) - before == {f"{folder.name}/out.csv"}
    output = pd.read_csv(folder / "out.csv", keep_default_na=False)
    assert output["image_id"].tolist() == table["image_name"].tolist()
    assert output["error"].tolist() == ["", "image nowhere.jpg not found", "", "", "", ""]
    assert output["p_malignant"][1] == ""


def test_a_long_table_is_read_in_chunks(records: Path, tmp_path: Path) -> None:
    table = cohort_of(records)[COLUMNS]
    table = pd.concat([table] * 9, ignore_index=True)
    assert len(table) > CHUNK
    table.to_csv(tmp_path / "in.csv", index=False)
    assert predict(best(records), tmp_path / "in.csv", tmp_path / "out.csv") == 0
    written = pd.read_csv(tmp_path / "out.csv")
    assert written["image_id"].tolist() == table["image_id"].tolist()
    first = written["p_malignant"].to_numpy().reshape(9, -1)
    assert abs(first - first[0]).max() < 1e-6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input=nowhere.csv"], "input=nowhere.csv: no such file"),
        (["output=out.csv"], "output=out.csv exists; choose another path or set overwrite=true"),
        (["output=in.csv", "overwrite=true"], "output=in.csv is the input itself"),
        (["output=out.xlsx"], "output=out.xlsx: the suffix must be one of .csv"),
        (["by_patient=true"], "by_patient=true: name a file that ends in .csv"),
        (["by_patient=in.csv", "overwrite=true"], "by_patient=in.csv: input names the same file"),
        (
            ["by_patient=a.csv", "submission=a.csv"],
            "submission=a.csv: by_patient names the same file",
        ),
        (["output=nowhere/out.csv"], "the folder nowhere does not exist"),
        (
            ["checkpoint=nowhere.ckpt"],
            "checkpoint=nowhere.ckpt: no such file, and no file matches it",
        ),
        (["checkpoint=in.csv"], "in.csv: not a checkpoint, or damaged"),
        (["input=empty.csv"], "input=empty.csv: the table has no rows"),
        (["images=nowhere"], "images=nowhere: no such folder"),
        (["input=nameless.csv"], "the table has no image column"),
        (["accelerator=gpu"], "no GPU is available here"),
        ([], "is next to in.csv; name their folder, images=DIR"),
    ],
)
def test_what_cannot_be_done_is_named_and_nothing_is_written(
    both: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    patients(both, tmp_path / "in.csv")
    Path("out.csv").write_text("precious")
    Path("empty.csv").write_text("image,sex\n")
    Path("nameless.csv").write_text("sex,age\nmale,50\n")
    before = {name: Path(name).read_bytes() for name in files_in(tmp_path)}
    given = [f"checkpoint={best(both)}", "input=in.csv", "output=new.csv"]
    replaced = {item.partition("=")[0] for item in overrides}
    given = [item for item in given if item.partition("=")[0] not in replaced]
    assert main.predict([*given, *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert {name: Path(name).read_bytes() for name in files_in(tmp_path)} == before


def test_images_away_from_the_table_are_no_reason_to_refuse_the_rest(
    both: Path, pictures: Path, tmp_path: Path
) -> None:
    table = patients(both, tmp_path / "in.csv", PROBED_ROWS + 1)
    table["image_id"] = [str(tmp_path / "gone" / name) for name in table["image_id"]]
    table.loc[PROBED_ROWS, "image_id"] = str(min(pictures.glob("*.jpg")))
    table.to_csv(tmp_path / "in.csv", index=False)
    assert predict(best(both), tmp_path / "in.csv", tmp_path / "out.csv") == 3
    errors = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["error"]
    assert np.flatnonzero(errors == "").tolist() == [PROBED_ROWS]


def test_an_output_is_replaced_when_asked(records: Path, tmp_path: Path) -> None:
    patients(records, tmp_path / "in.csv")
    (tmp_path / "out.csv").write_text("old")
    status = predict(best(records), tmp_path / "in.csv", tmp_path / "out.csv", "overwrite=true")
    assert status == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 30


def test_last_ckpt_is_refused_or_refers_every_row(
    records: Path, tmp_path: Path, capsys: Said
) -> None:
    patients(records, tmp_path / "in.csv")
    last = records / "checkpoints" / "last.ckpt"
    job = (last, tmp_path / "in.csv", tmp_path / "out.csv", f"by_patient={tmp_path / 'p.csv'}")
    assert predict(*job) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{last}: never calibrated" in line
    assert f"use {best(records)}" in line
    assert files_in(tmp_path) == {"in.csv"}
    assert main.main(["export", f"checkpoint={last}", f"out={tmp_path / 'last.onnx'}"]) == 2
    assert main.main(["serve", f"checkpoint={last}"]) == 2
    assert capsys.readouterr().err.count(f"use {best(records)}") == 2

    assert predict(*job, "uncalibrated=true") == 0
    captured = capsys.readouterr()
    assert "(30 rows: 30 refer; by torch)" in captured.out
    assert "WARNING: a checkpoint was never calibrated; all its decisions are refer" in captured.err
    written = pd.read_csv(tmp_path / "out.csv")
    assert set(written["decision"]) == {"refer"}
    assert written["threshold"].isna().all()
    assert not pd.read_csv(tmp_path / "p.csv").empty


def test_checkpoints_may_be_a_list(records: Path, tmp_path: Path) -> None:
    patients(records, tmp_path / "in.csv")
    shutil.copy(best(records), tmp_path / "other.ckpt")
    both_of = f"[{best(records)}, {tmp_path / 'other.ckpt'}]"
    assert predict(both_of, tmp_path / "in.csv", tmp_path / "out.csv") == 0
