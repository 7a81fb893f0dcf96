"""A page that may leave the building: no picture, and no name of an image, patient or lesion."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.report.card import write_card
from skinmm.report.inputs import Evidence, read_bare, read_run
from skinmm.report.page import refuse_existing, write_page
from skinmm.report.sections import SECTIONS
from skinmm.report.sections.facts import remarks
from skinmm.segmentation.report import is_mask_run, write_mask_page


def shared_report(run: Path, output: Path) -> Path:
    """Writes a run's page with numbers in place of names.

    Raises:
        InputError: as `write_report`.
    """
    return write_evidence(_nameless(read_run(run, pictures=False)), output)


def _nameless(evidence: Evidence) -> Evidence:
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
    if is_mask_run(Path(run)):
        return write_mask_page(Path(run), pictures=pictures)
    evidence = read_run(Path(run), pictures=pictures)
    write_card(evidence, Path(run) / "card.md")
    return write_evidence(evidence, Path(run) / "report.html")


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
    refuse_existing(Path(output), overwrite)
    source = None if labels is None else Path(labels)
    evidence = read_bare(Path(predictions), source, positive, pictures=pictures)
    return write_evidence(evidence, Path(output))


def write_evidence(evidence: Evidence, output: Path) -> Path:
    """Writes the page of what was read, or made of it."""
    made = (make(evidence) for make in SECTIONS.values())
    sections = [section for section in made if section is not None]
    return write_page(output, title=evidence.title, facts=remarks(evidence), sections=sections)
