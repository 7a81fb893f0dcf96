"""Hydra behind the commands: literal paths, one-line errors, typed configurations for the jobs."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar, Final

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback

from skinmm.cli.commands import GENERATED, Command, run_runs
from skinmm.cli.overrides import (
    FOLDER_KEYS,
    add_user_configs,
    find_mistake,
    quote_path,
    require_user_configs,
)
from skinmm.config import Config, from_mapping, keys_with, load
from skinmm.config.commands import RunsConfig
from skinmm.errors import (
    InputError,
    Terminated,
    one_line,
    print_error,
    print_line,
    sigterm_as_interrupt,
)

PACKAGE: Final = Path(__file__).parents[1]
# An installed wheel has conf inside the package, a checkout next to it.
CONF: Final = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
FULL_ERROR: Final = "HYDRA_FULL_ERROR"
_HYDRA_SETTINGS: Final = {"output_subdir": None, "job": {"chdir": False}, "run": {"dir": "."}}


class JobError(Exception):
    """Failure of a job in another process, which printed the reason; carries its exit status."""


class SweepFolders(Callback):
    """Hydra callback that collects the folders of grids, which Hydra does not return."""

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
    store_config(command)
    if {"-h", "--help"} & {*argv}:
        return run_cli(lambda: _print_help(argv, command), full=full, schema=schema)
    original_argv, process, statuses = sys.argv, os.getpid(), [0]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.config_name)
    def task(composed: Any) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        # Processes that the job starts, such as Lightning's, see neither Hydra nor quoted paths.
        HydraConfig.instance().cfg = None
        sys.argv = original_argv
        with changed_environment(**{FULL_ERROR: str(int(full))}):
            status = report_errors(
                lambda: job(_check_outputs(from_mapping(schema, composed)), folder), full=full
            )
        if folder != Path.cwd() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra made it for a job that was refused
        statuses.append(status)
        if status and os.getpid() != process:  # a launcher's process can only report by raising
            raise JobError(status)

    def compose_and_run() -> int:
        _check_folders(argv)
        try:
            task()
        except JobError as error:
            statuses.append(int(error.args[0]))
        _print_overviews()
        return max(statuses)

    words = [quote_path(item, schema) for item in argv]
    # Next to other overrides: argparse does not accept overrides on both sides of an option.
    is_override = ["=" in word and not word.startswith("-") for word in words]
    words.insert(is_override.index(True) if any(is_override) else len(words), _CALLBACK)
    with _changed_process([original_argv[0], *words]):
        return run_cli(compose_and_run, full=full, schema=schema)


@contextmanager
def _changed_process(argv: list[str]) -> Iterator[None]:
    """Set the arguments that Hydra reads; restore them, and the logging that a sweep changes."""
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


def store_config(command: Command) -> None:
    """Register the schema and, for a command without a file in conf, a generated configuration."""
    store, schema = ConfigStore.instance(), command.schema
    store.store(name="schema", node=schema)
    if command.config_name == GENERATED:
        names = [item.name for item in fields(schema) if (CONF / item.name).is_dir()]
        groups = [{name: getattr(schema(), name).name} for name in names]
        logs = [{f"override hydra/{name}_logging": "none"} for name in ("job", "hydra")]
        defaults = ["schema", *groups, "_self_", *logs]
        store.store(name=GENERATED, node={"defaults": defaults, "hydra": _HYDRA_SETTINGS})


def require_writable(key: str, output: str) -> None:
    """Refuse an output that is not writable, before any work is done; URLs pass."""
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


def report_errors(
    job: Callable[[], int], *, full: bool = False, schema: type[Any] | None = None
) -> int:
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
        print_error(f"error: {explain_error(error, schema)}")
        return 2 if isinstance(error, InputError | HydraException) else 1


def refuse(reason: str) -> int:
    """Print an error about the command line and return its exit status."""
    print_error(f"error: {reason}")
    return 2


def explain_error(error: Exception, schema: type[Any] | None = None) -> str:
    """Return one line about any error: what was given, and what is allowed."""
    if isinstance(error, InputError):
        return one_line(error)
    if not isinstance(error, HydraException):
        return f"{type(error).__name__}: {one_line(error)} (set {FULL_ERROR}=1 for the traceback)"
    return _explain_hydra_error(error, schema)


def _explain_hydra_error(error: HydraException, schema: type[Any] | None) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} '{option}'; choose from {', '.join(error.options or [])}"
    key = load.find_unknown_key(error.__cause__)
    if schema and key:
        return load.explain_unknown_key(schema, key)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not understood; close each bracket and quotation mark, and quote a "
            "value with special characters: KEY='VALUE'"
        )
    if several := re.match("Ambiguous value for argument '(.*?)=(.*)'", one_line(error)):
        is_list = schema is not None and load.describe_type(schema, several[1]) == load.LIST
        advice = [f"a list is {several[1]}=[{several[2]}]"] if is_list else []
        advice += ["-m trains one run for each"] if schema is Config else []
        advice = advice or ["give one value"]
        return f"{several[1]}={several[2]}: several values; {', '.join(advice)}"
    match = re.search(r"Error merging override '?[^=]*=(.*)", str(error))
    value = match[1].strip("'") if match else None
    return load.format_config_error(error.__cause__ or error, schema, value)


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


def _print_help(argv: list[str], command: Command) -> int:
    """Print the help of a command: its purpose, groups, and all settings with current values."""
    require_user_configs(argv)
    overrides = [quote_path(item, command.schema) for item in argv if not item.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    # A sweep has several values for a setting; show the default.
    single = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(command.config_name, single, return_hydra_config=True)
    schema = command.schema
    lines, groups = [f"{command.help}:", command.usage or _format_usage(command), ""], {}
    names = [name for name in composed.hydra.runtime.choices if not name.startswith("hydra/")]
    sources = [source for source in composed.hydra.runtime.config_sources if source.path]
    for group in reversed(names):
        files = (path for source in sources for path in Path(source.path, group).glob("*.yaml"))
        groups[group] = f"{group}={'|'.join(sorted({path.stem for path in files}))}"
    settings = load.describe_settings(schema, composed)
    if first_groups := keys_with(schema, "first_group"):
        keys = keys_with(schema, "first")
        lines += ["The first settings to know:", groups.pop("experiment")]
        lines += [groups.pop(group) for group in [*groups] if group in first_groups]
        lines += [line for line in settings if line.partition("=")[0] in keys]
        lines += ["", "Further groups:", *groups.values(), "", "All settings:"]
    else:
        lines += groups.values()
    print_line("\n".join([*lines, *settings]))
    return 0


def _format_usage(command: Command) -> str:
    """Format two example command lines: required settings only, then useful ones as well."""
    positional = keys_with(command.schema, "positional")
    words, others = ["  skinmm", command.name], [""]
    for item in fields(command.schema):
        if example := item.metadata.get("example"):
            bare = re.sub(r"[\[\],]", " ", example).strip()
            words.append(bare if item.name in positional else f"{item.name}={example}")
        if value := item.metadata.get("usage"):
            others.append(f"{item.name}={value}")
    line = " ".join(words)
    return f"{line}\n{line}{' '.join(others)}" if any(others) else line


def _check_folders(argv: list[str]) -> None:
    """Refuse run folders that cannot be created, and configuration folders that do not exist.

    Hydra makes the former before it runs the job, and only warns about the latter.
    """
    require_user_configs(argv)
    for item in argv:
        key, _, value = item.lstrip("+").partition("=")
        if key in FOLDER_KEYS:
            require_writable(key, value.strip("'\""))


def _check_outputs(config: Any) -> Any:
    """Return the configuration of a job if all of its outputs are writable."""
    schema = type(config)
    if not any(attrgetter(key)(config) for key in keys_with(schema, "disables_output")):
        for key in keys_with(schema, "output"):
            require_writable(key, attrgetter(key)(config) or "")
    return config
