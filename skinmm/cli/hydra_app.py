"""Hydra behind the commands: paths are taken literally, errors are one line, jobs see no Hydra."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from skinmm.config import (
    describe_settings,
    escape_interpolation,
    find_unknown_key,
    format_config_error,
    from_mapping,
    suggest_key,
)
from skinmm.errors import InputError, is_utf8

PACKAGE: Final = Path(__file__).parents[1]
# In an installed wheel conf lies inside the package, in a checkout beside it.
CONF: Final = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
FULL_ERROR: Final = "HYDRA_FULL_ERROR"

# Values of these keys are taken literally, whatever characters a path holds.
PATH_KEYS: Final = frozenset(
    {
        "data.root",
        "data.masks",
        "data.segmenter",
        "data.args.root",
        "data.args.table",
        "data.args.images",
        "model.pretrained",
        "model.cache",
        "resume",
        "checkpoint",
        "input",
        "images",
        "keys",
        "master",
        "store",
        "out",
        "output",
        "by_patient",
        "explain",
        "submission",
        "hydra.run.dir",
        "hydra.sweep.dir",
    }
)
OUTPUT_KEYS: Final = ("output", "out", "by_patient", "submission", "explain")
# The path behind `root:` in data.extra=[{name:...,root:PATH},...], up to what can only follow it.
_EXTRA_ROOT: Final = re.compile(
    r"([{,]\s*root\s*:\s*)(.*?)(?=\s*(?:,\s*\w+\s*:|\}\s*(?:,\s*\{|\]\s*$)))"
)


class JobError(Exception):
    """A run that has said why it failed.

    Attributes:
        status: its exit status.
    """

    def __init__(self, status: int) -> None:
        """Takes the exit status."""
        super().__init__(status)
        self.status = status


Job = Callable[[Any, Path], int]
"""Takes the typed configuration and the folder that Hydra made; returns the exit status."""


def run_hydra(argv: list[str], name: str, schema: type[Any], job: Job) -> int:
    """Composes, checks and runs a job; with `-m` as often as the overrides say.

    A run of a sweep that fails says so and lets the others go on.

    Args:
        argv: overrides and Hydra's flags.
        name: the primary configuration under conf.
        schema: its dataclass.
        job: called with every composed configuration.

    Returns:
        The worst exit status; of runs in processes of their own, that of the first that failed.
    """
    unwritable = [item for item in argv if not is_utf8(item)]
    if unwritable:
        return refuse(f"{unwritable[0]!r}: a name that is not UTF-8; rename the file or folder")
    ConfigStore.instance().store(name="schema", node=schema)
    full = os.environ.get(FULL_ERROR) == "1"
    if {"-h", "--help"} & {*argv}:
        return run_cli(lambda: _help(argv, name, schema), full=full, schema=schema)
    typed, own, statuses = sys.argv, os.getpid(), [0]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def task(composed: Any) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        # What the job starts (Lightning's other ranks) sees neither Hydra nor quoted paths.
        HydraConfig.instance().cfg = None
        sys.argv = typed
        with temporary_environment(**{FULL_ERROR: str(int(full))}):
            status = report_errors(
                lambda: job(_writable(from_mapping(schema, composed)), folder), full=full
            )
        _remove_if_empty(folder)
        statuses.append(status)
        if status and os.getpid() != own:  # a launcher's process, which can only tell by raising
            raise JobError(status)

    def finish() -> int:
        _check_folders(argv)
        try:
            task()
        except JobError as error:
            return error.status
        return max(statuses)

    sys.argv = [typed[0], *map(quote_path, argv)]
    try:
        # With the full error Hydra raises instead of printing several lines and exiting with 1.
        with temporary_environment(**{FULL_ERROR: "1"}):
            return run_cli(finish, full=full, schema=schema)
    finally:
        sys.argv = typed


def run_single(argv: list[str], name: str, schema: type[Any], job: Job, what: str) -> int:
    """As `run`, of a command that does one thing; `what` says so."""
    if {"-m", "--multirun"} & set(argv):
        return refuse(f"{what}; start it once for each")
    return run_hydra(argv, name, schema, job)


def require_writable(key: str, output: str) -> None:
    """Refuses an output where nothing can be written, before any work is done; URLs pass.

    Raises:
        InputError: the folder, or the nearest above it that is there, takes no file.
    """
    if not output or ":/" in output:
        return
    path = Path(output).absolute()
    place = path if path.is_dir() else path.parent
    try:
        while not place.exists():
            place = place.parent
        with TemporaryFile(dir=place):  # what `os.access` says does not bind root
            pass
    except OSError as error:
        raise InputError(
            f"{key}={output}: nothing can be written there: {error.strerror}"
        ) from error


def quote_path(override: str) -> str:
    """Quotes the value of a path key, so that Hydra takes it as it is.

    Left alone are null and quoted values; in a list in brackets that no file is named like, each
    item is quoted. In `data.extra` the roots are.
    """
    key, separator, value = override.partition("=")
    if key.lstrip("+") == "data.extra":
        return f"{key}={_EXTRA_ROOT.sub(lambda m: m[1] + _quoted(m[2]), value)}"
    if not separator or key.lstrip("+") not in PATH_KEYS:
        return override
    is_list = value.startswith("[") and value.endswith("]") and not Path(value).exists()
    if is_list and "'" not in value and '"' not in value:
        items = ",".join(_quoted(item.strip()) for item in value[1:-1].split(","))
        return f"{key}=[{items}]"
    return override if is_list else f"{key}={_quoted(value)}"


def run_cli(job: Callable[[], int], *, full: bool = False, schema: type[Any] | None = None) -> int:
    """The exit status of a job, Ctrl-C included; what went wrong is said in one line."""
    try:
        status = report_errors(job, full=full, schema=schema)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # who read has seen enough (`| head`); the rest is for nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def report_errors(
    job: Callable[[], int], *, full: bool = False, schema: type[Any] | None = None
) -> int:
    """As `run_cli`, but Ctrl-C goes on to end a sweep."""
    try:
        return job()
    except BrokenPipeError:
        raise
    except Exception as error:  # the last line of defence
        if full:
            traceback.print_exc()
        if isinstance(error, PermissionError) and error.filename:
            error = InputError(f"{error.filename}: {error.strerror}")
        print(f"error: {explain_error(error, schema)}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, InputError | HydraException) else 1


def refuse(reason: str) -> int:
    """Says what is wrong with the command line and returns its exit status."""
    print(f"error: {reason}", file=sys.stderr)  # noqa: T201
    return 2


def explain_error(error: Exception, schema: type[Any] | None = None) -> str:
    """One line for any error: what was given, and what could have been."""
    if isinstance(error, InputError):
        return format_config_error(error)
    if not isinstance(error, HydraException):
        return f"{type(error).__name__}: {format_config_error(error)} ({FULL_ERROR}=1 shows where)"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} '{option}'; choose from {', '.join(error.options or [])}"
    key = find_unknown_key(error.__cause__)
    if schema and key:
        return suggest_key(schema, key)
    if isinstance(error, OverrideParseException):
        lines = str(error).splitlines()
        why = [line for line in lines if not line.startswith(("Error parsing", "See "))]
        return f"{error.override}: {', '.join(why)}; quote what holds signs of Hydra's own"
    return format_config_error(error.__cause__ or error)


@contextmanager
def temporary_environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while; whatever else the block sets is undone as well."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _help(argv: list[str], name: str, schema: type[Any]) -> int:
    """Says what a command does, its choices, and every setting with the value it would have."""
    typed = [quote_path(item) for item in argv if not item.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(typed)
    # A sweep has no one value to show.
    overrides = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(name, overrides, return_hydra_config=True)
    lines = [composed.hydra.help.header]
    groups = [each for each in composed.hydra.runtime.choices if not each.startswith("hydra/")]
    for group in reversed(groups):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        lines.append(f"{group}={'|'.join(options)}")
    print(*lines, *describe_settings(schema, composed), sep="\n")  # noqa: T201
    return 0


def _quoted(value: str) -> str:
    if value in ("", "null") or value[0] in "'\"":
        return value
    # Hydra reads a backslash as itself, except in front of a quote or at the end.
    escaped = re.sub(
        r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), escape_interpolation(value)
    )
    return f"'{escaped}'"


def _check_folders(argv: list[str]) -> None:
    """Refuses run folders that cannot be made; Hydra makes them before anything else."""
    for item in argv:
        key, _, value = item.lstrip("+").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir"):
            require_writable(key, value.strip("'\""))


def _writable(config: Any) -> Any:
    """The configuration of a job, once its outputs are known to be such."""
    if not getattr(config, "verify", False):  # which writes nothing
        for key in OUTPUT_KEYS:
            require_writable(key, getattr(config, key, None) or "")
    return config


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the run folder before anything was checked; a refused run leaves none behind."""
    if folder != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()
