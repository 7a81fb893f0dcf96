"""The commands that take files and folders as they are named: report, compare."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from skinmm.cli_hydra import guarded, require_writable
from skinmm.errors import InputError

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
    from skinmm.report import compare_page
    from skinmm.report.format import aligned

    sources, options = _options(argv, COMPARE_OPTIONS)
    if not sources:
        raise InputError(COMPARE_USAGE)
    labels = Path(options["labels"]) if "labels" in options else None
    output = Path(options.get("output", "compare.html"))
    positive, overwrite = _names(options, "positive"), _flag(options, "overwrite") is True
    tables, notes = compare_page(sources, output, labels, positive=positive, overwrite=overwrite)
    told = "".join(f"{note.text}\n" for note in notes)
    print(f"{aligned(tables[0].header, tables[0].rows)}\n{told}comparison: {output}")  # noqa: T201
    return 0


def _told(argv: list[str], usage: str, job: Callable[[list[str]], int]) -> int:
    if {"-h", "--help"} & set(argv):
        print(usage)  # noqa: T201
        return 0
    return guarded(lambda: job(argv))


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
