"""Tables in the terminal, and the list of runs."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from report_cases import fitted, make_run

from skinmm.cli.main import main
from skinmm.errors import InputError
from skinmm.report.terminal import HEADER, format_columns, list_runs

Captured = pytest.CaptureFixture[str]


def test_a_wide_table_is_transposed_in_blocks_that_fit() -> None:
    header = ["system", "AUROC", "Brier score"]
    rows = [[f"run {n}", f"0.8{n} (0.7 to 0.9)", "0.1"] for n in range(5)]
    assert format_columns(header, rows).splitlines()[1] == "run 0   0.80 (0.7 to 0.9)  0.1"
    blocks = format_columns(header, rows, width=34).split("\n\n")
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 34
    cells = [line.split("  ") for block in blocks for line in block.splitlines()]
    for row in rows:
        assert any(row[1] in map(str.strip, line) for line in cells)
    assert sum(block.startswith("system") for block in blocks) == len(blocks) == 5
    settings = [["a", "0.8", "model.image_size=192; trainer.max_epochs=12"], ["b", "0.7", ""]]
    lines = format_columns(header, settings, width=50).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["Brier", "score", "model.image_size=192;"],
        ["trainer.max_epochs=12"],
    ]


def test_runs_are_listed_with_their_first_metric(tmp_path: Path, capsys: Captured) -> None:
    run = make_run(tmp_path / "runs")
    metric = json.loads((run / "metrics.json").read_text())["test"]["metrics"]["auroc"]
    (run / "fold_0").mkdir()
    (run / "fold_0" / "config.yaml").write_text((run / "config.yaml").read_text())
    later = tmp_path / "runs" / "sweep" / "3"
    later.mkdir(parents=True)
    settings = {"model": {"name": "tiny"}, "fusion": {"name": "late"}, "head": {"name": "linear"}}
    settings["data"] = {"name": "csv", "root": "/data/clinic"}
    (later / "config.yaml").write_text(yaml.safe_dump(settings))
    os.utime(run / "config.yaml", (0, 0))
    assert main(["runs", str(tmp_path / "runs")]) == 0
    header, first, second, hint = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == HEADER[0]
    estimate = f"AUROC {metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"
    assert first.startswith("1970-01-01")
    assert estimate in first
    assert first.endswith(str(run))
    assert second.split()[2:-1] == ["clinic", "tiny", "late,", "linear", "not", "finished"]
    assert second.endswith(str(later))
    assert hint == f"to compare them: skinmm compare {tmp_path / 'runs'}"


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no run, which is a folder with the config"):
        list_runs(tmp_path)
    (tmp_path / "config.yaml").write_text("name: other software\n")
    with pytest.raises(InputError, match="contains no run"):
        list_runs(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        list_runs(tmp_path / "nowhere")


def test_a_comparison_is_written_into_its_folder_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    first = make_run(tmp_path / "sweep").rename(tmp_path / "sweep" / "first")
    second = make_run(tmp_path / "sweep").rename(tmp_path / "sweep" / "second")
    assert main(["compare", "sweep"]) == 0
    assert main(["compare", str(first), str(second)]) == 0
    names = {"sweep/compare.html", "compare/compare.html"}
    assert names == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("compare.html")}
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("Malignant"))]
    assert max(map(len, table)) <= 100


def test_a_margin_is_printed(tmp_path: Path, capsys: Captured) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file, strength in zip(files, (1e-4, 1.0), strict=True):
        fitted(C=strength).to_csv(file, index=False)
    page = f"output={tmp_path / 'page.html'}"
    assert main(["compare", *map(str, files), "margin=0.5", page]) == 0
    text = capsys.readouterr().out
    assert 'Is the AUROC lower by less than 0.500? "Not inferior" if' in text
    assert re.search(r"b to a .* not inferior|Conclusion .*not inferior", text)


def test_the_default_comparison_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "sweep").rename(tmp_path / "sweep" / "first")
    make_run(tmp_path / "sweep").rename(tmp_path / "sweep" / "second")
    for _ in range(2):
        assert main(["compare", "sweep"]) == 0
    assert main(["compare", "sweep", "output=sweep/compare.html"]) == 2
    assert "exists" in capsys.readouterr().err


def test_what_was_mistaken_for_a_run_is_named(tmp_path: Path, capsys: Captured) -> None:
    run = make_run(tmp_path / "runs")
    assert main(["predict", f"checkpoint={str(run)[:-1]}", "input=a.csv"]) == 2
    assert f"did you mean {run}?" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "runs")]) == 2
    assert "give a run folder" in capsys.readouterr().err
    assert main(["train", "-m", f"resume={run}"]) == 2
    assert capsys.readouterr().err == "error: resume= continues one run; remove -m\n"
