"""Writers of self-contained pages: one page per run folder or prediction file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

import skinmm
from skinmm.config import name_cohort
from skinmm.config.commands import PredictionFilesConfig
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.other_formats import TableFormat
from skinmm.files import atomic_write
from skinmm.report.blocks import Section
from skinmm.report.inputs import ReportInputs, read_mapping, read_prediction_file, read_run
from skinmm.report.sections import SECTIONS
from skinmm.report.sections.appendix import build_card
from skinmm.report.sections.facts import describe_run


def write_report(
    run: Path,
    *,
    pictures: bool | None = None,
    prevalence: float | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html`, and the card of a classifier, into a run folder; replace earlier ones.

    Args:
        run: run folder; all files but the predictions are optional.
        pictures: show lesions; None: `report.pictures` of the run decides.
        prevalence: of a clinic, for predictive values and net benefit; None: as in the run.
        costs: of errors, for the table of decision rules; None: as in the run.
    """
    run = Path(run)
    task = read_mapping(run / "metrics.json").get("task", CLASSIFICATION)
    if task not in RUN_PAGES:
        raise InputError(f"{run}: task={task} has no report; known: {', '.join(RUN_PAGES)}")
    if task == CLASSIFICATION:
        return _write_run(run, pictures, prevalence, costs)
    for name, value in (("prevalence", prevalence), ("costs", costs)):
        if value is not None:
            raise InputError(f"{run}: evaluation.{name} is for task={CLASSIFICATION}, not {task}")
    return RUN_PAGES[task](run, pictures)


def reader_options(config: PredictionFilesConfig, system: str | None = None) -> dict[str, Any]:
    """Return the arguments of a reader of prediction files."""
    columns = config.columns or {}
    if not isinstance(columns, dict) or not all(isinstance(n, str) for n in columns.values()):
        raise InputError(f"columns={columns}: must be pairs, such as {{p_malignant: score}}")
    form = TableFormat(config.classes, columns, config.logits, system)
    labels = None if config.labels is None else Path(config.labels)
    return {"labels": labels, "positive": config.positive or None, "form": form}


def report_predictions(  # noqa: PLR0913 - all but two are optional
    predictions: Path,
    output: Path,
    labels: Path | None = None,
    *,
    positive: Sequence[str] | None = None,
    form: TableFormat | None = None,
    pictures: bool = True,
    prevalence: float | None = None,
    costs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ReportInputs:
    """Write the page of a prediction file from any system; return its inputs.

    Args:
        predictions: CSV with probabilities, and with the target unless `labels` has it. A column
            `threshold` with one value, as `predict.py` writes it, is the decision threshold.
        output: page to write.
        labels: CSV with the target of each image; its age, sex and site define subgroups.
        positive: classes that count as malignant; None: the default ones.
        form: meaning of the columns of another system.
        pictures: show lesions whose image files are known.
        prevalence: of a clinic, see `write_report`.
        costs: of errors, see `write_report`.
        overwrite: replace an existing page.
    """
    require_new_output("output", Path(output), overwrite=overwrite, suffix=".html")
    source = None if labels is None else Path(labels)
    inputs = read_prediction_file(Path(predictions), source, positive, pictures=pictures, form=form)
    inputs = inputs.restate(prevalence, costs)
    write_inputs(inputs, Path(output))
    return inputs


def write_anonymous_report(run: Path, output: Path) -> Path:
    """Write the page of a run without images; numbers replace the names of patients and images."""
    return write_inputs(_anonymize(read_run(run, pictures=False)), output)


def write_page(
    output: Path,
    *,
    title: str,
    facts: Sequence[str],
    sections: Sequence[Section | None],
    day: date | None = None,
) -> Path:
    """Write a page atomically.

    The folder of `output` is created if needed. Sections that are None are left out. The date in
    the heading is `day`, by default today.
    """
    day = day or datetime.now(UTC).astimezone().date()
    return _write_text(
        _render("page.html", f"{title}, {day.day} {day:%B %Y}", facts, sections), output
    )


def format_card(inputs: ReportInputs) -> str:
    """Return the model card of a run as Markdown, without patients, figures and images."""
    return _render("card.md", inputs.title, describe_run(inputs), build_card(inputs))


def _render(
    template: str, title: str, facts: Sequence[str], sections: Sequence[Section | None]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("skinmm.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=template.endswith(".md"),
    )
    environment.globals["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["md"] = _escape_markdown
    return environment.get_template(template).render(
        title=title,
        facts=facts,
        sections=[section for section in sections if section is not None],
        version=skinmm.__version__,
    )


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))


def _write_run(
    run: Path,
    pictures: bool | None,
    prevalence: float | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Path:
    inputs = read_run(run, pictures=pictures).restate(prevalence, costs)
    _write_text(format_card(inputs), run / "card.md")
    return write_inputs(inputs, run / "report.html")


CLASSIFICATION: Final = "classification"
RUN_PAGES: Final[dict[str, Callable[[Path, bool | None], Path]]] = {CLASSIFICATION: _write_run}
"""Task of a run -> writer of its page; optional tasks register theirs."""


def write_inputs(inputs: ReportInputs, output: Path) -> Path:
    """Write the page of a report from its inputs."""
    sections = [build(inputs) for build in SECTIONS.values()]
    data = name_cohort(inputs.config.get("data", {}))
    return write_page(
        output,
        title=f"Report of {data or inputs.title}",
        facts=[*([f"run {inputs.title}"] if data else []), *describe_run(inputs)],
        sections=sections,
        day=inputs.day,
    )


def _write_text(text: str, output: Path) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        # Names from some file systems contain lone surrogates, which UTF-8 cannot encode.
        partial.write_text(text, encoding="utf-8", errors="replace")
    return output


def _anonymize(inputs: ReportInputs) -> ReportInputs:
    """Replace the names of images, patients and lesions by numbers; remove paths."""
    rows, cohort = inputs.predictions, inputs.cohort
    image_ids = pd.Series(rows.image_id)
    all_ids = image_ids if cohort is None else pd.concat([image_ids, cohort["image_id"]])
    numbers = {name: f"image {index}" for index, name in enumerate(all_ids.unique(), start=1)}
    if cohort is not None:
        columns = [name for name in ("patient_id", "lesion_id") if name in cohort]
        numbered = {name: _number_names(cohort[name]) for name in columns}
        cohort = cohort.drop(columns=["images", "paths"], errors="ignore")
        cohort = cohort.assign(image_id=cohort["image_id"].map(numbers), path=None, **numbered)
    audit = dict(inputs.audit)
    if audit.get("leaks"):  # the text of a leak names its rows
        audit["leaks"] = [f"{len(audit['leaks'])} links between parts"]
    if audit.get("possible_leaks"):
        audit["possible_leaks"] = ["ids in two parts differ in spelling alone"]
    audit["notes"] = []  # which may name files
    predictions = replace(
        rows,
        image_id=image_ids.map(numbers).to_numpy(),
        patient_id=_number_names(pd.Series(rows.patient_id)).to_numpy(),
    )
    return replace(inputs, predictions=predictions, cohort=cohort, audit=audit, explanations={})


def _number_names(names: "pd.Series[Any]") -> "pd.Series[Any]":
    codes, _ = pd.factorize(names)
    return pd.Series(codes, index=names.index).astype(str).where(codes >= 0)
