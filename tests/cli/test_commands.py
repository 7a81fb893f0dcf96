"""The commands over a cohort, each run once in this process: pages, packs, exit statuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from micro_runs import micro_config, read_data
from PIL import Image
from sklearn.metrics import roc_auc_score

import skinmm
from skinmm.cli.commands import load_pack_input
from skinmm.cli.main import main
from skinmm.config import DataConfig
from skinmm.config.data_commands import PackConfig
from skinmm.images.shards import TFRecordFile

DEMO = Path(skinmm.__file__).parent / "demo"
HOSTILE = '"><img src=x onerror=alert(1)>'
CLASS = "<script>alert(1)<&script>"

Captured = pytest.CaptureFixture[str]


def test_workers_of_a_pack_get_an_absolute_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = DataConfig(name="demo", preprocess=["mask_background"], segmenter="drawing.ckpt")
    _, settings = load_pack_input(PackConfig(data))
    assert settings.segmenter == str(tmp_path / "drawing.ckpt")


class Page(HTMLParser):
    """What a browser's parser sees: tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        """Reads a page."""
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += f" {data.strip()}"

    @property
    def pictures(self) -> int:
        return sum(name == "img" for name, _ in self.tags)

    @property
    def is_self_contained(self) -> bool:
        """Nothing is loaded, nothing runs: links stay on the page, pictures are in it."""
        names = {name for name, _ in self.tags}
        places = [a[k] for _, a in self.tags for k in ("src", "href", "xlink:href") if k in a]
        handlers = [key for _, a in self.tags for key in a if key.startswith("on")]
        inside = all(place.startswith(("#", "data:image/jpeg;base64,")) for place in places)
        return inside and not handlers and not names & {"script", "link", "iframe", "object"}


def demo_table() -> pd.DataFrame:
    return pd.read_csv(DEMO / "cohort.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in class folders under fixed parts; a training picture is in test once more."""
    table, start = demo_table(), 0
    for part, count in (("train", 9), ("val", 6), ("test", 6)):
        for name, target in (("mel", 1), (CLASS, 0)):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for image in table.loc[table["target"] == target, "image_id"].iloc[start:][:count]:
                (place / f"{image}.jpg").symlink_to(DEMO / "images" / f"{image}.jpg")
        start += count
    root = tmp_path / "pictures"
    seen = sorted((root / "train" / "mel").iterdir())[0]
    Image.open(seen).resize((200, 200)).save(root / "test" / "mel" / f"{HOSTILE}.jpg", quality=70)
    (root / "val" / "mel" / "broken.jpg").write_bytes(b"no picture")
    return root


def of(folder: Path) -> list[str]:
    return ["data=image_folder", f"data.root={folder}", "data.positive=[mel]"]


def test_an_audit_shows_an_image_that_is_in_two_parts(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    output = tmp_path / "out (1), a=b"
    assert main(["audit", *of(folder), "near=true", f"output={output}"]) == 1
    assert "leaks found: 1 near duplicate (" in capsys.readouterr().err
    findings = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    seen = min(path.stem for path in (folder / "train" / "mel").iterdir())
    assert [{pair["first"], pair["second"]} for pair in findings["pairs"]] == [{HOSTILE, seen}]
    assert set(findings["unreadable"]) == {"broken"}
    assert findings["compared"] == 2 * (9 + 6 + 6) + 1
    page = Page(output / "audit.html")
    assert page.is_self_contained
    assert page.pictures == 2
    for words in (HOSTILE, "Leak: 1 near duplicate", "1 image could not be read", "starts with"):
        assert words in page.text


def test_an_audit_reports_a_split_without_leaks(tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "audit"
    assert main(["audit", f"output={output}"]) == 0
    assert "no leaks found" in capsys.readouterr().out
    findings = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert findings["rows"] == sum(findings["parts"].values()) == 700
    page = Page(output / "audit.html")
    assert page.is_self_contained
    assert page.pictures == 0
    assert "found no leak" in page.text
    for text in findings["unchecked"]:  # the cohort names no patient, and its pixels were not read
        assert f"Not checked: {text}." in page.text
    assert findings["across_parts"]["patient"] is findings["across_parts"]["near duplicate"] is None
    assert "Patients in two parts not checked" in page.text
    assert "near=true" in page.text


def test_the_audit_has_the_calibration_part_of_a_run(tmp_path: Path) -> None:
    output = tmp_path / "audit"
    assert main(["audit", "data.calibration=0.4", f"output={output}"]) == 0
    findings = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    run = read_data(micro_config(data=DataConfig(calibration=0.4)), frozenset({"record"}))
    assert findings["parts"] == run.cohort["part"].value_counts().to_dict()
    assert findings["parts"]["calibration"] == 56  # 0.4 of 140
    assert "Calibration" in Page(output / "audit.html").text


def test_a_patient_in_two_parts_is_shown_from_both(tmp_path: Path, capsys: Captured) -> None:
    table = demo_table().groupby("target").head(8)
    table["patient"] = [f"p{number // 2}" for number in range(len(table))]
    table["part"] = (["train", "train", "val", "test"] * len(table))[: len(table)]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "images").symlink_to(DEMO / "images")
    options = ["data=csv", f"data.root={tmp_path}", "+data.args.columns={patient_id: patient}"]
    assert main(["audit", *options, f"output={tmp_path / 'audit'}"]) == 1
    page = Page(tmp_path / "audit" / "audit.html")
    assert "Patient in two parts: 4 of 4" in page.text
    assert "patient p1" in page.text
    assert page.pictures == 8
    table["patient"] = [("P1", "p1", "P01", "q")[number % 4] for number in range(len(table))]
    table["part"] = (["train", "train", "val", "test"] * len(table))[: len(table)]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    assert main(["audit", *options, f"output={tmp_path / 'spelling'}"]) == 0
    line = "possible leak: patient ids in two parts differ only in case, spaces or leading zeros"
    assert f"WARNING: {line}: 1 pair (P1 and P01)" in capsys.readouterr().err
    assert line.capitalize() in Page(tmp_path / "spelling" / "audit.html").text


def test_audit_and_explore_name_the_columns_that_are_not_used(
    tmp_path: Path, capsys: Captured
) -> None:
    rows = "\n".join(f"I{row},P{row // 2},train,{row % 3 % 2}" for row in range(60))
    (tmp_path / "cohort.csv").write_text(f"image,case,Split,target\n{rows}\n")
    line = (
        "no column patient_id or lesion_id: every image counts as a patient; columns not used: "
        "case, Split (looks like a split: use +data.args.columns.part=Split)"
    )
    for command, page in (("audit", "audit/audit.html"), ("explore", "explore.html")):
        output = tmp_path / page.partition("/")[0]
        assert main([command, "data=csv", f"data.root={tmp_path}", f"output={output}"]) == 0
        assert line in capsys.readouterr().out.splitlines()
        assert line in Page(tmp_path / page).text


def test_paths_with_special_characters_are_read(tmp_path: Path, capsys: Captured) -> None:
    places = [tmp_path / name for name in ("${HOME} (1), a=b #c é", "Läsionen {2}, d=e")]
    for number, place in enumerate(places):
        place.mkdir()
        rows = "\n".join(f"I{number}{row},{row % 2}" for row in range(20))
        (place / "t (1).csv").write_text(f"image,target\n{rows}\n")
        (place / "cohort.csv").write_text(f"image,target\n{rows}\n")
    first, second = places
    extra = f"data.extra=[{{name:csv,root:{second}}}]"
    options = ["data=csv", f"data.root={first}", "+data.args.table=t (1).csv", extra]
    output = tmp_path / "audit ${x}"
    assert main(["audit", *options, f"output={output}", "data.columns=[]"]) == 0, (
        capsys.readouterr()
    )
    assert json.loads((output / "audit.json").read_text())["rows"] == 40


def test_a_page_about_the_embedded_cohort(tmp_path: Path) -> None:
    output, table = tmp_path / "explore.html", demo_table()
    assert main(["explore", f"output={output}", "examples=3"]) == 0
    page = Page(output)
    assert page.is_self_contained
    assert page.pictures == 6
    assert sum(name == "svg" for name, _ in page.tags) == 2
    ages = [rows["age"].dropna() for _, rows in table.groupby("target")]
    missing = f"{table['site'].isna().sum()} ({table['site'].isna().mean():.1%})"
    expected = [f"{np.mean(known):.1f} ({np.std(known):.1f})" for known in ages]
    text = page.text.replace("\N{NO-BREAK SPACE}%", "%")
    for words in (*expected, missing, "256x256", "malignant: 3 of 142"):
        assert words in text


def test_a_page_escapes_names_and_needs_no_records(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "explore.html"
    target = "data.target=diagnosis"
    assert main(["explore", *of(folder), target, f"output={output}", "examples=50"]) == 0
    page = Page(output)
    assert page.is_self_contained
    assert page.pictures == 2 * (9 + 6 + 6) + 1
    assert f"{CLASS}: 21 of 21" in page.text
    assert HOSTILE in page.text
    assert "no image" in page.text


def test_a_pack_is_written_verified_and_used(tmp_path: Path, capsys: Captured) -> None:
    table = demo_table().groupby("target").head(6)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "images").mkdir()
    for image in table["image_id"].iloc[1:]:
        link = tmp_path / "images" / f"{image}.jpg"
        link.symlink_to(DEMO / "images" / f"{image}.jpg")
    out = tmp_path / "packed"
    options = ["pack", "data=csv", f"data.root={tmp_path}", f"out={out}", "size=64", "workers=1"]
    assert main(options) == 2
    assert (said := "1 of 12 images are not on disk") in capsys.readouterr().err
    assert main(["audit", *options[1:3], f"output={tmp_path / 'audit'}"]) == 0
    assert f"WARNING: {said}, e.g. {table['image_id'].iloc[0]}; " in capsys.readouterr().err
    assert said in Page(tmp_path / "audit" / "audit.html").text
    assert main([*options, "data.missing=drop"]) == 0
    shard = TFRecordFile(next(out.glob("*.tfrec")))
    assert sorted(shard.names) == sorted(table["image_id"].iloc[1:])
    check = ["pack", f"out={out}", "verify=true"]
    assert main(check) == 0
    assert "11 images, all match their checksums" in capsys.readouterr().out
    page = tmp_path / "explore.html"
    used = ["explore", "data=packed", f"data.root={out}", f"output={page}", "examples=20"]
    assert main(used) == 0
    assert Page(page).pictures == 11
    with next(out.glob("*.tfrec")).open("r+b") as file:
        file.seek(100)
        file.write(b"changed")
    assert main(check) == 2
    assert "changed since it was packed" in capsys.readouterr().err


def test_files_are_compared_on_a_page_and_in_the_terminal(tmp_path: Path, capsys: Captured) -> None:
    table = demo_table().dropna(subset=["age"])
    files = []
    for name, score in (("older", table["age"] / 100), ("younger", 1 - table["age"] / 100)):
        columns = {"image_id": table["image_id"], "target": table["target"]}
        frame = pd.DataFrame({**columns, "p_benign": 1 - score, "p_malignant": score})
        files.append(tmp_path / f"{name} (1).csv")
        frame.to_csv(files[-1], index=False)
    output = tmp_path / "compare.html"
    assert main(["compare", *map(str, files), f"output={output}"]) == 0
    said = capsys.readouterr().out.splitlines()
    auroc = roc_auc_score(table["target"], table["age"])
    assert re.split(r"\s{2,}", said[0].strip()) == ["System", "older (1)", "younger (1)"]
    line, difference = (line for line in said if line.startswith("AUROC "))
    cells = [cell.split()[0] for cell in re.split(r"\s{2,}", line.strip())[1:]]
    assert cells == [f"{auroc:.3f}", f"{1 - auroc:.3f}"]
    assert difference.split()[1] == f"{2 * auroc - 1:.3f}"
    assert Page(output).is_self_contained
    assert main(["compare", *map(str, files), f"output={output}"]) == 2
    assert " exists; choose" in capsys.readouterr().err
    pd.read_csv(files[1]).head(len(table) // 3).to_csv(files[1], index=False)
    assert main(["compare", *map(str, files), f"output={output}", "overwrite=true"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.endswith("in common: older (1).") for line in said)


def test_a_preview_shows_what_the_sampler_draws(tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "preview.html"
    quick = ["data=demo", "model=tiny", "sampler=balanced", "examples=5", f"output={output}"]
    assert main(["preview", *quick]) == 0
    page = Page(output)
    assert page.pictures == 5
    data = read_data(micro_config("tabular_only"), frozenset({"record"}))
    targets = data.training_targets
    assert f"benign {(targets == 0).sum()} (" in " ".join(page.text.split())
    assert "208 (50.0" in page.text  # as many of each class
    assert "age: " in page.text
    assert main(["preview", *quick]) == 2
    assert "exists; choose another path or set overwrite=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "nera=true"], "unknown key 'nera'; did you mean near?"),
        (["audit", "model=tiny"], "model"),
        (["audit", "data.fold=all"], "data.fold=all: must be 0 to 4"),
        (["audit", "data=siim"], "unknown data 'siim'; choose from csv, demo"),
        (["audit", "data=image_folder", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["explore", "examples=-1"], "examples=-1: must be between 0 and 500"),
        (["explore", "-m", "data=demo,csv"], "skinmm explore does not accept -m"),
        (["explore", "output=/sys/x.html"], "output=/sys/x.html: not writable: "),
        (["pack"], "out is missing; for example out=packed"),
        (["pack", "out=x", "size=8"], "size=8: must be between 16 and 8192"),
        (["pack", "out=nowhere", "verify=true"], "nowhere: no manifest.json"),
        (["compare"], "inputs is missing; for example inputs=[a.csv,b.csv]"),
        (["compare", "nowhere.csv"], "nowhere.csv"),
        (["compare", "a.csv", "output=/sys/x.html"], "output=/sys/x.html: not writable"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_not_replaced(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "audit.html").write_text("mine")
    assert main(["audit", f"output={tmp_path}"]) == 2
    assert main(["explore", f"output={tmp_path / 'audit.html'}"]) == 2
    assert capsys.readouterr().err.count("overwrite=true") == 2
    assert (tmp_path / "audit.html").read_text() == "mine"
    assert main(["audit", f"output={tmp_path}", "overwrite=true"]) == 0


@pytest.mark.parametrize("command", ["audit", "explore", "pack", "compare", "report"])
def test_help_names_the_command(command: str, capsys: Captured) -> None:
    assert main([command, "--help"]) == 0
    assert f"skinmm {command}" in capsys.readouterr().out


def test_a_report_of_a_vendor_prints_its_verdict(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "vendor.csv"
    rows = [f"I{n}.jpg,0.{5 + n % 4},{n % 2}" for n in range(40)]
    file.write_text("\n".join(["Photo,Risk,malignant", *rows]), encoding="utf-8")
    page = tmp_path / "page.html"
    assert main(["report", str(file), "columns={p_malignant: Risk}", f"output={page}"]) == 0
    first, *_, verdict, last = capsys.readouterr().out.splitlines()
    assert first.split("  ")[0] == "test: 40 rows, 20 malignant"
    assert verdict.startswith(("Not useful", "Not shown to be useful", "Useful"))
    assert verdict in Page(page).text
    assert last == f"report: {page}"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        *((name, ["data=csv", "data.root=absent"]) for name in ("audit", "explore")),
        ("plan", []),
        ("feedback", ["store=absent.db"]),
    ],
)
def test_a_page_with_figures_needs_matplotlib_before_data_are_read(
    command: str,
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("skinmm.errors.find_spec", lambda _: None)
    assert main([command, *given]) == 2
    expected = f"skinmm {command} needs matplotlib: pip install 'skinmm[train]'"
    assert expected in capsys.readouterr().err
