"""Hydra behind the commands: literal paths, one-line errors, typed configurations for the jobs."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar, Final

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from yaml import MarkedYAMLError

from skinmm.cli.commands import Command, run_runs
from skinmm.cli.compose import CONF, explain_hydra_error, print_help, store_config
from skinmm.cli.overrides import (
    FOLDER_KEYS,
    add_user_configs,
    find_mistake,
    load_user_code,
    quote_override,
)
from skinmm.config import from_mapping, keys_with
from skinmm.config.commands import RunsConfig
from skinmm.config.registry import load_plugins
from skinmm.errors import (
    InputError,
    Terminated,
    one_line,
    print_error,
    print_line,
    sigterm_as_interrupt,
)

FULL_ERROR: Final = "HYDRA_FULL_ERROR"


class JobError(Exception):
    """Failure of a job in another process, which printed the reason; carries its exit status."""


class SweepFolders(Callback):
    """Hydra callback that collects the folders of grids."""

    started: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Store the folder of the grid."""
        self.started.append(Path(config.hydra.sweep.dir))


_CALLBACK: Final = f"+hydra.callbacks.folders._target_={__name__}.{SweepFolders.__name__}"

Job = Callable[[Any, Path], int]
"""Function of the typed configuration and the folder that Hydra made; returns the exit status."""


def run_hydra(argv: list[str], command: Command, job: Job) -> int:
    """Compose, check and run a job; with `-m` once for each combination of overrides.

    A job that fails in a sweep is reported, and the others continue. Return the highest exit
    status; for jobs in processes of their own, that of the first failure.
    """
    schema, full = command.schema, os.environ.get(FULL_ERROR) == "1"
    argv = add_user_configs(argv)
    if mistake := find_mistake(argv, schema, CONF):
        return refuse(mistake)
    if {"-h", "--help"} & {*argv}:
        return run_cli(lambda: print_help(argv, command), full=full, schema=schema)
    original_argv, process, statuses = sys.argv, os.getpid(), [0]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.config_name)
    def task(composed: Any) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        # Processes that the job starts, such as Lightning's, see neither Hydra nor quoted paths.
        HydraConfig.instance().cfg = None
        sys.argv = original_argv
        with changed_environment(**{FULL_ERROR: str(int(full))}):
            status = report_errors(
                lambda: job(_prepare(from_mapping(schema, composed)), folder), full=full
            )
        if folder != Path.cwd() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra made it for a job that was refused
        statuses.append(status)
        if status and os.getpid() != process:  # a launcher's process can only report by raising
            raise JobError(status)

    def compose_and_run() -> int:
        _check_folders(argv)
        store_config(command)
        try:
            task()
        except JobError as error:
            statuses.append(int(error.args[0]))
        _print_overviews()
        return max(statuses)

    words = [quote_override(item, schema) for item in argv]
    # Next to other overrides: argparse does not accept overrides on both sides of an option.
    is_override = ["=" in word and not word.startswith("-") for word in words]
    words.insert(is_override.index(True) if any(is_override) else len(words), _CALLBACK)
    with _changed_process([original_argv[0], *words]):
        return run_cli(compose_and_run, full=full, schema=schema)


@contextmanager
def _changed_process(argv: list[str]) -> Iterator[None]:
    """Set the arguments that Hydra reads; afterwards restore them and the logging."""
    original_argv, logger = sys.argv, logging.root
    handlers, level = [*logger.handlers], logger.level
    sys.argv = argv
    try:
        # With the full error Hydra raises, instead of printing several lines and exiting with 1.
        with changed_environment(**{FULL_ERROR: "1"}):
            yield
    finally:
        sys.argv = original_argv
        logger.handlers[:] = handlers  # a sweep adds one that writes to the present stdout
        logger.setLevel(level)


def _print_overviews() -> None:
    """List the runs of the grids that were started, and name the command that compares them."""
    while SweepFolders.started:
        folder = SweepFolders.started.pop()
        if any(folder.glob("*/config.yaml")):
            print_line("")
            run_runs(RunsConfig(str(folder)))


def require_writable(key: str, output: str) -> None:
    """Raise InputError if an output is not writable; URLs are not checked."""
    if not output or ":/" in output:
        return
    path = Path(output).absolute()
    folder = path if path.is_dir() else path.parent
    try:
        while not folder.exists():
            folder = folder.parent
        with TemporaryFile(dir=folder):  # `os.access` is always true for root
            pass
    except OSError as error:
        raise InputError(
            f"{key}={output}: not writable: {error.strerror}; choose another path"
        ) from error


def run_cli(job: Callable[[], int], *, full: bool = False, schema: type[Any] | None = None) -> int:
    """Run a job and return its exit status; print an error, Ctrl-C or SIGTERM as one line."""
    try:
        with sigterm_as_interrupt():
            status = report_errors(job, full=full, schema=schema)
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        is_sigterm = isinstance(error, Terminated)
        print_error("; ".join(["terminated" if is_sigterm else "interrupted", *error.args]))
        return 143 if is_sigterm else 130
    except BrokenPipeError:  # the reader has ended, as `| head` does; discard the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def report_errors(job: Callable[[], int], *, full: bool, schema: type[Any] | None = None) -> int:
    """Run a job, print an error as one line, return the exit status; Ctrl-C is not caught."""
    try:
        return job()
    except BrokenPipeError:
        raise
    except Exception as error:  # the last resort
        if full or hasattr(error, "__notes__"):  # a note: the code of a user failed
            traceback.print_exc()
        if isinstance(error, PermissionError) and error.filename:
            error = InputError(f"{error.filename}: {error.strerror}")
        if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
            position = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
            error = InputError(f"{position}: not YAML: {error.problem}")
        reason, status = one_line(error), 2
        if isinstance(error, HydraException):
            reason = explain_hydra_error(error, schema)
        elif not isinstance(error, InputError):
            advice, status = f"(set {FULL_ERROR}=1 for the traceback)", 1
            reason = f"{type(error).__name__}: {reason} {advice}"
        print_error(f"error: {reason}")
        return status


def refuse(reason: str) -> int:
    """Print an error about the command line and return its exit status."""
    print_error(f"error: {reason}")
    return 2


@contextmanager
def changed_environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a block, and undo every change that the block makes."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_folders(argv: list[str]) -> None:
    """Raise InputError if a run folder cannot be created, or a configuration folder is missing.

    Hydra makes the former before it runs the job, and only warns about the latter.
    """
    load_user_code(argv)
    for item in argv:
        key, _, value = item.lstrip("+").partition("=")
        if key in FOLDER_KEYS:
            require_writable(key, value.strip("'\""))


def _prepare(config: Any) -> Any:
    """Run the plug-ins of a job and check its outputs; return its configuration."""
    schema = type(config)
    load_plugins(getattr(config, "plugins", []))
    if not any(attrgetter(key)(config) for key in keys_with(schema, "disables_output")):
        for key in keys_with(schema, "output"):
            require_writable(key, attrgetter(key)(config) or "")
    return config
