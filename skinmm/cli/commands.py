"""The commands that combine several rooms of the package, and their common class."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skinmm.config import DataConfig, PredictConfig, name_cohort, read_costs
from skinmm.config import commands as schemas
from skinmm.config import data_commands as data_schemas
from skinmm.errors import (
    InputError,
    print_error,
    print_line,
    require_new_output,
    require_package,
    warn,
)

if TYPE_CHECKING:
    import pandas as pd

    from skinmm.data.cohorts.tables import CohortTable
    from skinmm.data.packed import PackSettings
    from skinmm.report.cohort_pages import Cohort

TERMINAL: Final = 100  # columns of a table
GENERATED: Final = "command"  # name of the primary configuration that is made from a schema


@dataclass(frozen=True)
class Command:
    """A command of `skinmm`.

    Attributes:
        name: first word of its command line.
        schema: dataclass of its settings; the docstring is the help of the command.
        function: "module:function", imported when it runs: configuration -> exit status.
        config_name: primary configuration: a file in conf, or generated from the schema.
        usage: examples for the help; by default one with the required settings.
        draws: whether it draws figures; it is refused at its start if matplotlib is absent.
    """

    name: str
    schema: type[Any]
    function: str
    config_name: str = GENERATED
    usage: str = ""
    draws: bool = False

    @property
    def help(self) -> str:
        """Return the one-line description of the command."""
        return (self.schema.__doc__ or "").partition("\n")[0].rstrip(".")

    def __call__(self, config: Any) -> int:
        """Import the function and call it."""
        if self.draws:
            require_package("matplotlib", f"skinmm {self.name}", "train")
        module, _, name = self.function.partition(":")
        return int(getattr(import_module(module), name)(config))


def run_predict(config: PredictConfig) -> int:
    """Predict a table; write masks if the checkpoint is a segmentation network."""
    from skinmm.config.checkpoints import find_checkpoints
    from skinmm.models.checkpoint import read_task
    from skinmm.predict.job import predict_file

    checkpoints = find_checkpoints(config.checkpoint)
    tasks = {read_task(path) for path in checkpoints}
    if len(checkpoints) == 1 and tasks == {"segmentation"} and config.explain is None:
        from skinmm.segmentation.results import predict_masks

        return predict_masks(config, checkpoints[0])
    return predict_file(config)


def run_audit(config: data_schemas.AuditConfig) -> int:
    """Write the audit of a cohort and return 1 if its split leaks, else 0."""
    from skinmm.data.audit import audit
    from skinmm.data.cohorts import describe_missing_images
    from skinmm.data.shortcuts import is_malignant
    from skinmm.data.sources import split_by_config
    from skinmm.data.splits import cut_calibration
    from skinmm.report import write_audit_page
    from skinmm.training.run_folder import write_json

    data, folder = config.data, Path(config.output)
    page, summary = folder / "audit.html", folder / "audit.json"
    for file in (page, summary):
        require_new_output("output", file, overwrite=config.overwrite)
    loaded = _load_cohort(data, needs_images=config.near)
    table = loaded.rows
    absent = describe_missing_images(table, loaded.searched)
    near, facts = None, dict[str, Any](absent=absent, notes=list(loaded.notes))
    if config.near:
        near, table, compared = _compare_images(table)
        facts |= compared
    table = split_by_config(table, data, int(data.fold))
    malignant = is_malignant(table, _to_cohort(table, data).positive)
    table = cut_calibration(table, data.calibration, malignant, data.split_seed)
    cohort = _to_cohort(table, data)
    findings = audit(table, positive=cohort.positive, columns=data.columns, near=near) | facts
    folder.mkdir(parents=True, exist_ok=True)
    write_json(summary, findings)
    write_audit_page(cohort, findings, page)
    print_line(f"audit: {page}")
    for warning in filter(None, [*findings["warnings"], findings["absent"]]):
        warn(warning)
    for text in findings["possible_leaks"]:
        warn(f"possible leak: {text}")
    if findings["leaks"]:
        print_error(f"leaks found: {'; '.join(findings['leaks'])}")
        return 1
    for text in findings["unchecked"]:
        print_line(f"not checked: {text}")
    print_line("no leaks found in these checks")
    return 0


def run_explore(config: data_schemas.ExploreConfig) -> int:
    """Write the overview of a cohort."""
    from skinmm.report import write_cohort_page

    output = Path(config.output)
    require_new_output("output", output, overwrite=config.overwrite, suffix=".html")
    loaded = _load_cohort(config.data, needs_images=False)
    cohort = _to_cohort(loaded.rows, config.data, loaded.notes)
    write_cohort_page(cohort, output, examples=config.examples)
    print_line(f"page: {output}")
    return 0


def run_pack(config: data_schemas.PackConfig | data_schemas.PackSparkConfig) -> int:
    """Pack a cohort (on Apache Spark if `master` is set), or verify a pack."""
    from skinmm.data.pack import pack
    from skinmm.data.packed import verify_pack
    from skinmm.images.source import read_source

    out, overwrite = Path(config.out), config.overwrite
    if isinstance(config, data_schemas.PackConfig) and config.verify:
        print_line(f"{out}: {verify_pack(out).images:,} images, all match their checksums")
        return 0
    table, settings = load_pack_input(config)
    if isinstance(config, data_schemas.PackConfig):
        pack(table, out, read_source, settings, workers=config.workers, overwrite=overwrite)
    else:
        from skinmm.spark import pack_spark

        pack_spark(table, out, settings, config.master, overwrite=overwrite)
    print_line(f"packed {len(table):,} images; to use them: data=packed data.root={out}")
    return 0


def run_report(config: schemas.ReportPageConfig) -> int:
    """Write the report of a run folder or of a prediction file."""
    import skinmm.segmentation.results  # noqa: F401 - adds the page of its task
    from skinmm.report import reader_options, report_predictions, write_report
    from skinmm.report.terminal import print_summary, summarize, summarize_run

    source, pictures = Path(config.input), config.report.pictures
    prevalence, costs = config.evaluation.prevalence, read_costs(config.evaluation.costs)
    if source.is_dir():
        unused = (config.system, config.labels, config.positive, config.classes, config.columns)
        if any(unused) or config.output != schemas.ReportPageConfig.output:
            text = "output, system, labels, positive, classes and columns are for prediction files"
            raise InputError(f"{source} is a folder, its page is {source}/report.html: {text}")
        page = write_report(source, pictures=pictures, prevalence=prevalence, costs=costs)
        summary = summarize_run(source)
    else:
        page = Path(config.output)
        inputs = report_predictions(
            source,
            page,
            **reader_options(config, config.system),
            pictures=pictures is not False,
            prevalence=prevalence,
            costs=costs,
            overwrite=config.overwrite,
        )
        summary = summarize(inputs)
    print_summary(summary)
    print_line(f"report: {page}")
    return 0


def run_compare(config: schemas.CompareConfig) -> int:
    """Write the comparison of runs and prediction files, and print systems and differences."""
    from skinmm.report import reader_options, write_comparison
    from skinmm.report.terminal import format_table

    sources = [Path(source) for source in config.inputs]
    folder = sources[0] if len(sources) == 1 and sources[0].is_dir() else Path("compare")
    output = Path(config.output or folder / "compare.html")  # the default is replaced
    tables, notes = write_comparison(
        sources,
        output,
        **reader_options(config),
        margin=config.margin,
        prevalence=config.evaluation.prevalence,
        overwrite=config.overwrite or not config.output,
    )
    texts = (format_table(table, TERMINAL) for table in tables if table.is_printed)
    print_line("\n\n".join(texts))
    print_line("\n".join(["", *(note.text for note in notes), f"comparison: {output}"]))
    return 0


def run_runs(config: schemas.RunsConfig) -> int:
    """Print the runs below a folder, and the command that compares them."""
    from skinmm.report.terminal import HEADER, format_columns, list_runs

    rows = list_runs(Path(config.input))
    print_line(format_columns(HEADER, rows))
    if len(rows) > 1:
        print_line(f"to compare them: skinmm compare {shlex.quote(config.input)}")
    return 0


def run_export(config: schemas.ExportConfig) -> int:
    """Write a checkpoint as ONNX, or as a page for browsers."""
    if config.target == "browser":
        from skinmm.serve.browser import export_browser

        folder = export_browser(config)
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print_line(f"page: {folder / 'index.html'} ({megabytes:.1f} MB), for any static web server")
        return 0
    from skinmm.predict.export_onnx import export

    for path in export(config):
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        print_line(f"model: {path} ({size}), outputs match PyTorch on {config.rows} rows")
    return 0


def run_feedback(config: schemas.FeedbackConfig) -> int:
    """Report the performance of a model on stored cases."""
    require_package("sqlalchemy", "skinmm feedback", "serve")
    from skinmm.serve.feedback import feedback

    print_line(f"feedback: {feedback(config)}")
    return 0


def load_pack_input(config: data_schemas.PackingConfig) -> "tuple[pd.DataFrame, PackSettings]":
    """Return the rows that have an image, and the settings of the pack."""
    from skinmm.data.columns import add_units
    from skinmm.data.file_checks import image_checks, require_usable
    from skinmm.data.packed import PackSettings

    data = config.data
    settings = PackSettings(
        size=config.size,
        quality=config.quality,
        icc="srgb" if data.icc == "srgb" else "ignore",
        steps=tuple(data.preprocess),
        # Workers of Spark start in another folder.
        segmenter=data.segmenter and str(Path(data.segmenter).absolute()),
    )
    cohort = _load_cohort(data, needs_images=True)
    table = cohort.rows
    files = require_usable(table, image_checks(table, data), data.missing)
    for note in files.notes:
        print_line(note)
    return add_units(table[files.is_usable], cohort.units).reset_index(drop=True), settings


def _load_cohort(data: DataConfig, *, needs_images: bool) -> "CohortTable":
    """Read a cohort, and print the notes on it."""
    from skinmm.data.cohorts import load_cohort, require_images

    cohort = require_images(load_cohort(data), data.missing, needed=needs_images)
    for note in cohort.notes:
        print_line(note)
    return cohort


def _to_cohort(table: "pd.DataFrame", data: DataConfig, notes: Sequence[str] = ()) -> "Cohort":
    from skinmm.data.cohorts import list_classes, list_positive_classes
    from skinmm.report import Cohort

    classes = list_classes(table, data)
    positive = list_positive_classes(classes, data)
    return Cohort(name_cohort(vars(data)), table, classes, positive, data.columns, notes)


def _compare_images(table: "pd.DataFrame") -> "tuple[Any, pd.DataFrame, dict[str, Any]]":
    """Return near duplicates, the rows with image sizes, and the number of compared images."""
    import pandas as pd
    from tqdm import tqdm

    from skinmm.data.audit import compute_fingerprints, find_near_duplicates
    from skinmm.data.file_checks import fill_sizes
    from skinmm.images.source import read_source

    with tqdm(total=len(table), desc="comparing", unit=" images", disable=None) as bar:
        prints = compute_fingerprints(table, read_source, bar.update)
    sizes = pd.DataFrame(prints.sizes, prints.image_id, dtype=float).reindex(table["image_id"])
    facts = {"compared": len(prints.image_id), "unreadable": prints.unreadable}
    return find_near_duplicates(prints), fill_sizes(table, sizes.to_numpy()), facts
