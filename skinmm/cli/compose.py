"""Configurations composed by Hydra from `conf` and overrides, for the API and the help."""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from skinmm.cli.commands import GENERATED, Command
from skinmm.cli.overrides import (
    add_user_configs,
    find_mistake,
    load_user_code,
    quote_override,
)
from skinmm.config import Config, from_mapping, keys_with, load
from skinmm.config.registry import find_plugins, load_plugins
from skinmm.errors import InputError, one_line, print_line

PACKAGE: Final = Path(__file__).parents[1]
# An installed wheel has conf inside the package, a checkout next to it.
CONF: Final = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
_HYDRA_SETTINGS: Final = {"output_subdir": None, "job": {"chdir": False}, "run": {"dir": "."}}


def store_config(command: Command) -> None:
    """Register the schema and, for a command without a file in conf, a generated configuration."""
    store, schema = ConfigStore.instance(), command.schema
    store.store(name="schema", node=schema)
    for item in fields(schema):  # components of others are options, with the defaults of their code
        for name in find_plugins(item.name):
            node = {"name": name} if item.name in ("data", "model") else {"name": name, "args": {}}
            store.store(group=item.name, name=name, node=node)
    if command.config_name == GENERATED:
        names = [item.name for item in fields(schema) if (CONF / item.name).is_dir()]
        groups = [{name: getattr(schema(), name).name} for name in names]
        logs = [{f"override hydra/{name}_logging": "none"} for name in ("job", "hydra")]
        defaults = ["schema", *groups, "_self_", *logs]
        store.store(name=GENERATED, node={"defaults": defaults, "hydra": _HYDRA_SETTINGS})


def compose_config(overrides: Sequence[str]) -> tuple[Config, Path]:
    """Return the configuration of a training and its run folder, without creating the folder.

    Raises:
        InputError: an unknown setting, group or value.
    """
    from skinmm.cli.main import TRAIN

    argv = add_user_configs([*overrides])
    if mistake := find_mistake(argv, Config, CONF):
        raise InputError(mistake)
    load_user_code(argv)
    store_config(TRAIN)
    words = [quote_override(item, Config) for item in argv]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(TRAIN.config_name, words, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            folder = Path(composed.hydra.run.dir)
    except HydraException as error:
        raise InputError(explain_hydra_error(error, Config)) from error
    finally:
        HydraConfig.instance().cfg = None
    config = from_mapping(Config, {item.name: composed[item.name] for item in fields(Config)})
    load_plugins(config.plugins)
    return config, folder


def explain_hydra_error(error: HydraException, schema: type[Any] | None) -> str:
    """Return one line about an error of Hydra: what was given, and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        hint = "; configurations of skinmm init need --config-dir DIR" if group == "data" else ""
        return f"unknown {group} '{option}'; choose from {', '.join(error.options or [])}{hint}"
    key = load.find_unknown_key(error.__cause__)
    if schema and key:
        return load.explain_unknown_key(schema, key)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not understood; close each bracket and quotation mark, and quote a "
            "value with = or other special characters: KEY='VALUE'"
        )
    if several := re.match("Ambiguous value for argument '(.*?)=(.*)'", one_line(error)):
        is_list = schema is not None and load.describe_type(schema, several[1]) == load.LIST
        advice = [f"a list is {several[1]}=[{several[2]}]"] if is_list else []
        advice += ["-m trains one run for each"] if schema is Config else []
        advice = advice or ["give one value"]
        return f"{several[1]}={several[2]}: several values; {', '.join(advice)}"
    if repeated := re.search(r"Either remove \+ prefix: '(.*)'", str(error)):
        return f"{repeated[1].partition('=')[0]} is set already; without the +: {repeated[1]}"
    match = re.search(r"Error merging override '?[^=]*=(.*)", str(error))
    value = match[1].strip("'") if match else None
    return load.format_config_error(error.__cause__ or error, schema, value)


def print_help(argv: list[str], command: Command) -> int:
    """Print the help of a command: its purpose, groups, and all settings with current values."""
    load_user_code(argv)
    store_config(command)
    overrides = [quote_override(item, command.schema) for item in argv if not item.startswith("-")]
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
        names_of_group = {path.stem for path in files} | {*find_plugins(group)}
        groups[group] = f"{group}={'|'.join(sorted(names_of_group))}"
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
    """Format two example command lines: the required settings only, and with useful ones added."""
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
