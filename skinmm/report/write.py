"""Sections to one self-contained HTML file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

import skinmm
from skinmm.errors import require_new_output
from skinmm.files import atomic_write
from skinmm.report.blocks import Section
from skinmm.report.card import card_text
from skinmm.report.inputs import ReportInputs, read_json, read_prediction_file, read_run
from skinmm.report.sections import SECTIONS
from skinmm.report.sections.facts import remarks


def write_page(
    output: Path, *, title: str, facts: Sequence[str], sections: Sequence[Section]
) -> Path:
    """Renders the page and puts it in place by rename, so no reader meets half a page.

    Args:
        output: the file to write; its folder is made where missing.
        title: what the page is about.
        facts: short remarks under the title (date, model, data).
        sections: the chapters in reading order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("skinmm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=title, facts=facts, sections=sections, version=skinmm.__version__
    )
    return write_text(text, output)


def write_text(text: str, output: Path) -> Path:
    """Writes a file by rename; its folder is made where missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        # Ids read from odd file systems may hold lone surrogates, which UTF-8 cannot.
        partial.write_text(text, encoding="utf-8", errors="replace")
    return output


def write_anonymous_report(run: Path, output: Path) -> Path:
    """Writes a run's page with numbers in place of names.

    Raises:
        InputError: as `write_report`.
    """
    return write_sections(_nameless(read_run(run, pictures=False)), output)


def _nameless(evidence: ReportInputs) -> ReportInputs:
    rows, cohort = evidence.predictions, evidence.cohort
    given = pd.Series(rows.image_id)
    everyone = given if cohort is None else pd.concat([given, cohort["image_id"]])
    images = {name: f"image {place}" for place, name in enumerate(everyone.unique(), start=1)}
    if cohort is not None:
        others = {
            column: _numbered(cohort[column])
            for column in ("patient_id", "lesion_id")
            if column in cohort
        }
        cohort = cohort.assign(image_id=cohort["image_id"].map(images), path=None, **others)
    audit = dict(evidence.audit)
    if audit.get("leaks"):  # each names its rows
        audit["leaks"] = [f"{len(audit['leaks'])} links between parts"]
    return replace(
        evidence,
        predictions=replace(
            rows,
            image_id=given.map(images).to_numpy(),
            patient_id=_numbered(pd.Series(rows.patient_id)).to_numpy(),
        ),
        cohort=cohort,
        audit=audit,
        explanations={},
    )


def _numbered(names: "pd.Series[Any]") -> "pd.Series[Any]":
    codes, _ = pd.factorize(names)
    return pd.Series(codes, index=names.index).astype(str).where(codes >= 0)


def write_report(run: Path, *, pictures: bool | None = None) -> Path:
    """Writes `report.html` and `card.md` into a run folder, in place of earlier ones.

    Args:
        run: the folder; besides the predictions any of its files may be absent.
        pictures: show lesions, or let the page hold no image of a patient; None: as the run's own
            configuration says.

    Returns:
        The page.

    Raises:
        InputError: no predictions there, or a file that cannot be read.
    """
    run = Path(run)
    return RUN_PAGES[read_json(run / "metrics.json").get("task", CLASSIFICATION)](run, pictures)


def _write_run(run: Path, pictures: bool | None) -> Path:
    evidence = read_run(run, pictures=pictures)
    write_text(card_text(evidence), run / "card.md")
    return write_sections(evidence, run / "report.html")


CLASSIFICATION: Final = "classification"
RUN_PAGES: Final[dict[str, Callable[[Path, bool | None], Path]]] = {CLASSIFICATION: _write_run}
"""Task of a run -> writer of its page; optional tasks add themselves."""


def report_predictions(
    predictions: Path,
    output: Path,
    labels: Path | None = None,
    *,
    positive: Sequence[str] | None = None,
    pictures: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes the page for any system's prediction file.

    Args:
        predictions: CSV with probabilities, and with truth unless `labels` has it. A constant
            column `threshold`, as `predict.py` writes it, is the decision threshold.
        output: the page to write.
        labels: CSV with truth by image; its age, sex and site, where there, make the subgroups.
        positive: classes that count as malignant; None: the usual ones.
        pictures: show lesions, where their files are known.
        overwrite: replace a page that is there.

    Returns:
        The page.

    Raises:
        InputError: the file cannot be used, or the page exists.
    """
    require_new_output("output", Path(output), overwrite=overwrite)
    source = None if labels is None else Path(labels)
    evidence = read_prediction_file(Path(predictions), source, positive, pictures=pictures)
    return write_sections(evidence, Path(output))


def write_sections(evidence: ReportInputs, output: Path) -> Path:
    """Writes the page of what was read, or made of it."""
    made = (make(evidence) for make in SECTIONS.values())
    sections = [section for section in made if section is not None]
    return write_page(output, title=evidence.title, facts=remarks(evidence), sections=sections)
