"""The commands that look at a cohort or make it small: audit, explore, pack."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skinmm.cli.hydra_app import run_single
from skinmm.config import AuditConfig, DataConfig, ExploreConfig, PackConfig, PackSparkConfig

if TYPE_CHECKING:
    import pandas as pd

    from skinmm.data.audit import Fingerprints
    from skinmm.data.packed import PackSettings
    from skinmm.report.cohort_pages import Cohort
from collections.abc import Callable

from skinmm.cli.hydra_app import require_writable, run_cli
from skinmm.config import PredictSparkConfig
from skinmm.errors import InputError, require_new_output

PACKED: Final = "packed {images:,} images; to use them: data=packed data.root={out}"


def audit(argv: list[str]) -> int:
    """Finds leaks and shortcuts of a cohort and its split; 1 when there is a leak."""
    return run_single(argv, "audit", AuditConfig, _audit, "skinmm audit takes one cohort")


def explore(argv: list[str]) -> int:
    """Makes a page about a cohort: counts, what is missing, ages, sites, sizes, pictures."""
    return run_single(argv, "explore", ExploreConfig, _explore, "skinmm explore takes one cohort")


def pack(argv: list[str]) -> int:
    """Makes a cohort's images small and puts them into TFRecord shards; or checks such a pack."""
    return run_single(argv, "pack", PackConfig, _pack, "skinmm pack takes one cohort")


def _audit(config: AuditConfig, _: Path) -> int:
    from skinmm.data.audit import audit as audited
    from skinmm.data.audit import find_near_duplicates
    from skinmm.data.cohorts import describe_missing_images, load_cohort, require_images
    from skinmm.data.splits import split
    from skinmm.report import write_audit_page
    from skinmm.training.run_folder import write_json

    data, folder = config.data, Path(config.output)
    page, facts = folder / "audit.html", folder / "audit.json"
    for file in (page, facts):
        require_new_output("output", file, overwrite=config.overwrite)
    loaded = load_cohort(data)
    table = require_images(loaded, data.missing, needed=config.near)
    absent = describe_missing_images(table, loaded.searched)
    near, pixels = None, dict[str, Any](absent=absent)
    if config.near:
        found = _fingerprints(table)
        near, table = find_near_duplicates(found), _with_sizes(table, found)
        pixels |= {"compared": len(found.image_id), "unreadable": found.unreadable}
    table = split(table, data.folds, int(data.fold), data.split_seed)
    cohort = _seen(table, data)
    findings = audited(table, positive=cohort.positive, columns=data.columns, near=near) | pixels
    folder.mkdir(parents=True, exist_ok=True)
    write_json(facts, findings)
    write_audit_page(cohort, findings, page)
    print(f"audit: {page}")  # noqa: T201
    for warning in filter(None, [*findings["warnings"], findings["absent"]]):
        print(f"WARNING: {warning}", file=sys.stderr)  # noqa: T201
    if findings["leaks"]:
        print(f"leaks found: {'; '.join(findings['leaks'])}", file=sys.stderr)  # noqa: T201
        return 1
    print("no leaks found")  # noqa: T201
    return 0


def _explore(config: ExploreConfig, _: Path) -> int:
    from skinmm.report import write_cohort_page

    output = Path(config.output)
    require_new_output("output", output, overwrite=config.overwrite)
    cohort = _seen(_cohort(config.data), config.data)
    write_cohort_page(cohort, output, examples=config.examples)
    print(f"page: {output}")  # noqa: T201
    return 0


def _pack(config: PackConfig, _: Path) -> int:
    from skinmm.data.pack import pack as packed
    from skinmm.data.packed import verify_pack
    from skinmm.images.source import read_source

    out = Path(config.out)
    if config.verify:
        manifest = verify_pack(out)
        print(f"{out}: {manifest.images:,} images, all as they were packed")  # noqa: T201
        return 0
    table, settings = to_pack(config)
    packed(table, out, read_source, settings, workers=config.workers, overwrite=config.overwrite)
    print(PACKED.format(images=len(table), out=out))  # noqa: T201
    return 0


def to_pack(config: PackConfig | PackSparkConfig) -> "tuple[pd.DataFrame, PackSettings]":
    """The rows, all with their image, and how they are packed."""
    from skinmm.data.packed import PackSettings

    data = config.data
    settings = PackSettings(
        size=config.size,
        quality=config.quality,
        icc="srgb" if data.icc == "srgb" else "ignore",
        steps=tuple(data.preprocess),
        # Workers of Spark start elsewhere.
        segmenter=data.segmenter and str(Path(data.segmenter).absolute()),
    )
    return _cohort(data, images=True), settings


def _cohort(data: DataConfig, *, images: bool = False) -> "pd.DataFrame":
    """The rows, as `data.missing` says where their images are needed."""
    from skinmm.data.cohorts import load_cohort, require_images

    return require_images(load_cohort(data), data.missing, needed=images)


def _seen(table: "pd.DataFrame", data: DataConfig) -> "Cohort":
    from skinmm.data.cohorts import list_classes, list_positive_classes
    from skinmm.report import Cohort

    classes = list_classes(table, data)
    return Cohort(data.name, table, classes, list_positive_classes(classes, data), data.columns)


def _fingerprints(table: "pd.DataFrame") -> "Fingerprints":
    from tqdm import tqdm

    from skinmm.data.audit import compute_fingerprints
    from skinmm.images.source import read_source

    with tqdm(total=len(table), desc="comparing", unit=" images", disable=None) as bar:
        return compute_fingerprints(table, read_source, bar.update)


def _with_sizes(table: "pd.DataFrame", found: "Fingerprints") -> "pd.DataFrame":
    """Sizes that the table lacks, as the images have them, so that they can be probed."""
    import pandas as pd

    sizes = pd.DataFrame(found.sizes, found.image_id, ["width", "height"], dtype=float)
    names = table["image_id"]
    return table.assign(
        width=table["width"].fillna(names.map(sizes["width"])),
        height=table["height"].fillna(names.map(sizes["height"])),
    )


REPORT_OPTIONS: Final = ("labels", "positive", "output", "report.pictures", "overwrite")
REPORT_USAGE: Final = (
    "usage: skinmm report RUN_FOLDER | PREDICTIONS.csv "
    "[labels=LABELS.csv] [positive=CLASS,CLASS] [output=report.html] [report.pictures=true] "
    "[overwrite=false]"
)
COMPARE_OPTIONS: Final = ("labels", "positive", "output", "overwrite")
COMPARE_USAGE: Final = (
    "usage: skinmm compare PREDICTIONS.csv | RUN_FOLDER | FOLDER_OF_RUNS ... "
    "[labels=LABELS.csv] [positive=CLASS,CLASS] [output=compare.html] [overwrite=false]"
)


def report(argv: list[str]) -> int:
    """Makes the page of a run folder or of any system's prediction file."""
    return _told(argv, REPORT_USAGE, _report)


def compare(argv: list[str]) -> int:
    """Sets prediction files or runs side by side, or all runs in a folder."""
    return _told(argv, COMPARE_USAGE, _compare)


def _report(argv: list[str]) -> int:
    import skinmm.segmentation.report  # noqa: F401 - adds the page of its task
    from skinmm.report import report_predictions, write_report

    sources, options = _options(argv, REPORT_OPTIONS)
    if len(sources) != 1:
        raise InputError(REPORT_USAGE)
    source = sources[0]
    if source.is_dir():
        page = write_report(source, pictures=_flag(options, "report.pictures"))
    else:
        labels = Path(options["labels"]) if "labels" in options else None
        output = Path(options.get("output", "report.html"))
        page = report_predictions(
            source,
            output,
            labels,
            positive=_names(options, "positive"),
            pictures=_flag(options, "report.pictures") is not False,
            overwrite=_flag(options, "overwrite") is True,
        )
    print(f"report: {page}")  # noqa: T201
    return 0


def _compare(argv: list[str]) -> int:
    from skinmm.report import write_comparison
    from skinmm.report.format import format_columns

    sources, options = _options(argv, COMPARE_OPTIONS)
    if not sources:
        raise InputError(COMPARE_USAGE)
    labels = Path(options["labels"]) if "labels" in options else None
    output = Path(options.get("output", "compare.html"))
    positive, overwrite = _names(options, "positive"), _flag(options, "overwrite") is True
    tables, notes = write_comparison(
        sources, output, labels, positive=positive, overwrite=overwrite
    )
    told = "".join(f"{note.text}\n" for note in notes)
    print(f"{format_columns(tables[0].header, tables[0].rows)}\n{told}comparison: {output}")  # noqa: T201
    return 0


def _told(argv: list[str], usage: str, job: Callable[[list[str]], int]) -> int:
    if {"-h", "--help"} & set(argv):
        print(usage)  # noqa: T201
        return 0
    return run_cli(lambda: job(argv))


def _options(argv: list[str], known: tuple[str, ...]) -> tuple[list[Path], dict[str, str]]:
    """The files that were named, and the KEY=VALUE of known keys."""
    pairs = [item.partition("=")[::2] for item in argv]
    options = dict(pair for pair in pairs if pair[0] in known)
    require_writable("output", options.get("output", ""))
    named = zip(argv, pairs, strict=True)
    return [Path(item) for item, pair in named if pair[0] not in options], options


def _flag(options: dict[str, str], name: str) -> bool | None:
    """What was said of a switch; None where nothing was."""
    word = options.get(name)
    if word is None:
        return None
    if word.lower() not in ("true", "false"):
        raise InputError(f"{name}={word}: must be true or false")
    return word.lower() == "true"


def _names(options: dict[str, str], name: str) -> list[str] | None:
    """A list of names as `a,b` or `[a,b]`; None where nothing was said."""
    given = options.get(name, "").strip("[]").split(",")
    return [each.strip() for each in given if each.strip()] or None


def predict_spark(argv: list[str]) -> int:
    """Predicts a list of any length on Apache Spark, Parquet in and out."""
    return run_single(
        argv,
        "predict_spark",
        PredictSparkConfig,
        _predict_spark,
        "skinmm predict-spark makes one table",
    )


def pack_spark(argv: list[str]) -> int:
    """Packs a cohort as `pack` does, its shards written on Apache Spark."""
    return run_single(
        argv, "pack_spark", PackSparkConfig, _pack_spark, "skinmm pack-spark takes one cohort"
    )


def _predict_spark(config: PredictSparkConfig, _: Path) -> int:
    from skinmm.spark.predict import predict_spark as predicted

    return predicted(config)


def _pack_spark(config: PackSparkConfig, _: Path) -> int:
    from skinmm.spark.pack import pack_spark as packed

    table, settings = to_pack(config)
    packed(table, Path(config.out), settings, config.master, overwrite=config.overwrite)
    print(PACKED.format(images=len(table), out=config.out))  # noqa: T201
    return 0
