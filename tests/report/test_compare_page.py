"""Several systems on one page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from report_cases import CONFIG, Page, fitted, make_run
from sklearn.metrics import roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import read_predictions
from skinmm.report import write_comparison
from skinmm.report.blocks import format_estimate


def test_files_are_compared_in_the_order_given(tmp_path: Path) -> None:
    files = []
    for name, strength in (("weak", 1e-4), ("strong", 1.0)):
        table = fitted(C=strength)
        files.append(tmp_path / f"{name}.csv")
        table.to_csv(files[-1], index=False)
    (shown, *_), _ = write_comparison(files, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    areas = [
        roc_auc_score(table["target"], table["p_malignant"]) for table in map(pd.read_csv, files)
    ]
    assert page.text.index("weak") < page.text.index("strong")
    assert f"weak ({areas[0]:.3f})" in page.text
    assert f"strong ({areas[1]:.3f})" in page.text
    assert f"weak minus strong {areas[0] - areas[1]:.3f}" in page.text
    assert page.count("svg") == 2
    assert [row[0] for row in shown.rows] == ["weak", "strong"]


def test_a_folder_of_runs_shows_the_settings_that_differ(tmp_path: Path) -> None:
    source = make_run(tmp_path)
    for number, name in enumerate(("resnet50", "<script>x</script>")):
        run = tmp_path / "sweep" / str(number)
        (run / "predictions").mkdir(parents=True)
        for file in ("predictions/test.csv", "metrics.json"):
            (run / file).write_bytes((source / file).read_bytes())
        config = {**CONFIG, "model": {"name": name, "image_size": 224 + number}}
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_comparison([tmp_path / "sweep"], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "model.name=resnet50; model.image_size=224" in page.text
    assert "loss.name" not in page.text
    assert page.count("script") == 0


def test_a_grid_is_ranked_on_validation(tmp_path: Path) -> None:
    source = make_run(tmp_path)
    metrics = json.loads((source / "metrics.json").read_text())
    for name, auroc in (("first", 0.7), ("second", 0.9)):
        run = tmp_path / "sweep" / name
        (run / "predictions").mkdir(parents=True)
        (run / "predictions" / "test.csv").write_bytes(
            (source / "predictions" / "test.csv").read_bytes()
        )
        validation = {"metrics": {"auroc": {"value": auroc}}}
        (run / "metrics.json").write_text(json.dumps({**metrics, "val": validation}))
    (systems, *_), notes = write_comparison([tmp_path / "sweep"], tmp_path / "page.html")
    assert [row[:2] for row in systems.rows] == [["first", "0.700"], ["second", "0.900"]]
    assert "Chosen on validation: second" in notes[0].text
    assert "Chosen on validation: second" in Page(tmp_path / "page.html").text


def test_a_choice_needs_common_validation_rows(tmp_path: Path) -> None:
    metrics = json.loads((make_run(tmp_path) / "metrics.json").read_text())
    for name in ("first", "second"):
        run = make_run(tmp_path / name)
        validation = {"metrics": {"auroc": {"value": 0.7}}}
        (run / "metrics.json").write_text(json.dumps({**metrics, "val": validation}))
    runs = [tmp_path / "first", tmp_path / "second"]
    cohort = next((tmp_path / "second").rglob("cohort.csv"))
    _, notes = write_comparison(runs, tmp_path / "page.html")
    assert "Chosen on validation" in notes[0].text
    table = pd.read_csv(cohort, dtype=str)
    rows = table.index[table["part"] == "val"]
    table.loc[rows[0], "part"] = "train"
    table.to_csv(cohort, index=False)
    _, notes = write_comparison(runs, tmp_path / "page.html", overwrite=True)
    assert "too optimistic" in notes[0].text


def test_image_names_may_have_suffixes_and_a_file_is_compared_with_others(tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    table = fitted()
    table.to_csv(files[0], index=False)
    table.assign(image_id=table["image_id"] + ".jpg").to_csv(files[1], index=False)
    tables, _ = write_comparison(files, tmp_path / "page.html")
    assert tables[1].rows[0][0] == "a minus b"
    extra = table.head(1).assign(image_id=table["image_id"].head(1) + ".png")
    both = pd.concat([table.assign(image_id=table["image_id"] + ".jpg"), extra])
    both.to_csv(files[0], index=False)  # two images of one name
    write_comparison(files, tmp_path / "page.html", overwrite=True)
    assert f"on the {len(table):,} images in common" in Page(tmp_path / "page.html").text
    with pytest.raises(InputError, match=r"a\.csv is given twice"):
        write_comparison([files[0], *files], tmp_path / "page.html", overwrite=True)
    with pytest.raises(InputError, match=r"page\.pdf: the suffix must be \.html"):
        write_comparison(files, tmp_path / "page.pdf")


def test_files_without_validation_warn_against_a_choice(tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file, strength in zip(files, (1e-4, 1.0), strict=True):
        fitted(C=strength).to_csv(file, index=False)
    _, notes = write_comparison(files, tmp_path / "page.html", margin=0.5)
    assert "too optimistic" in notes[0].text
    page = Page(tmp_path / "page.html").text
    assert "Is the AUROC lower by less than 0.500?" in page
    assert "b to a" in page
    assert "not inferior" in page


def test_a_bare_file_has_no_settings_to_compare(tmp_path: Path) -> None:
    run, file = make_run(tmp_path), tmp_path / "file.csv"
    fitted().to_csv(file, index=False)
    (systems, *_), _ = write_comparison([run, file], tmp_path / "page.html")
    assert "Settings that differ" not in systems.header


def test_different_images_are_said_loudly(tmp_path: Path) -> None:
    table = fitted()
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    table.to_csv(files[0], index=False)
    table.head(350).to_csv(files[1], index=False)
    write_comparison(files, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "on the 350 images in common" in page.text
    table.tail(353).to_csv(files[0], index=False)
    _, (*_, note) = write_comparison(files, tmp_path / "page.html", margin=0.02, overwrite=True)
    assert "none or fewer than ten in common" in note.text
    assert "inferior" not in Page(tmp_path / "page.html").text
    table.tail(350).to_csv(files[0], index=False)
    with pytest.raises(InputError, match="a, b have no image in common"):
        write_comparison(files, tmp_path / "page.html", overwrite=True)
    run = make_run(tmp_path)  # of another fold
    own = pd.read_csv(run / "predictions" / "test.csv")["image_id"]
    table[~table["image_id"].isin(own)].to_csv(files[0], index=False)
    write_comparison([run, files[0]], tmp_path / "page.html", overwrite=True)
    assert "their metrics are not comparable" in Page(tmp_path / "page.html").text


def test_one_system_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 1 system; a comparison needs at least two"):
        write_comparison([make_run(tmp_path)], tmp_path / "page.html")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no run found"):
        write_comparison([tmp_path / "none"], tmp_path / "page.html")


def test_systems_with_sources_are_compared_within_them(tmp_path: Path) -> None:
    files = []
    for name, c in (("a", 1.0), ("b", 0.01)):
        table = fitted(C=c)
        table = table.assign(source=np.resize(["North", "South"], len(table)))
        files.append(tmp_path / f"{name}.csv")
        table.to_csv(files[-1], index=False)
    (systems, *_), _ = write_comparison(files, tmp_path / "page.html")
    column = systems.header.index("AUROC within sources")
    for file, row in zip(files, systems.rows, strict=True):
        entry = evaluate(read_predictions(file))["metrics"]["within_source_auroc"]
        assert row[column] == format_estimate(entry)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        page.count('<th scope="col">AUROC within sources</th>') == 3
    )  # systems, differences, by source
