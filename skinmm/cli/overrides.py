"""Conversion of command-line arguments to overrides with literal values."""

import os
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from skinmm.config import keys_with, load
from skinmm.config.registry import load_plugins
from skinmm.errors import InputError, is_utf8

FOLDER_KEYS: Final = ("hydra.run.dir", "hydra.sweep.dir")
USER_CONF: Final = "SKINMM_CONF"  # variable that names a folder of configurations
_SEARCH_PATH: Final = "hydra.searchpath="


FLAGS: Final = ("-m", "--multirun", "-h", "--help", "--info", "--resolve", "--hydra-help")
_VALUED_FLAGS: Final = ("--cfg", "-c", "--package", "-p")  # the next word is their value


def find_mistake(argv: list[str], schema: type[Any], conf: Path) -> str | None:
    """Describe the first word that is neither an option nor KEY=VALUE; None if there is none.

    `conf` is the folder of the groups of configurations, by which a word without a key is found.
    """
    if unreadable := [word for word in argv if not is_utf8(word)]:
        return f"{unreadable[0]!r}: a name that is not UTF-8; rename the file or folder"
    words = iter(argv)
    for word in words:
        following = next(words, "VALUE") if word in _VALUED_FLAGS else ""
        if not following and word.startswith("-") and word not in FLAGS:
            return _describe_dashes(word, next(words, "VALUE"), schema)
        if not word.startswith(("-", "~")) and (reason := _describe_word(word, schema, conf)):
            return reason
    return None


def _describe_dashes(word: str, following: str, schema: type[Any]) -> str:
    """Describe a word with dashes that is no option."""
    key, separator, value = word.lstrip("-").partition("=")
    if key.partition(".")[0] in {item.name for item in fields(schema)}:
        return f"{word}: settings have no dashes: write {key}={value if separator else following}"
    options = "-m, --config-dir DIR and --help"
    return f"unknown option {word}; options are {options}, settings are KEY=VALUE"


def _describe_word(word: str, schema: type[Any], conf: Path) -> str:
    """Describe a word without a key, or a group with a number instead of a name; "" otherwise."""
    key, separator, value = word.lstrip("+").partition("=")
    if not separator or not key:
        names = sorted(path.parent.name for path in conf.glob("*/*.yaml") if path.stem == word)
        similar = f"; did you mean {' or '.join(f'{name}={word}' for name in names)}?"
        return f"{word}: settings are written KEY=VALUE{similar if names else ''}"
    sections = {item.name for item in fields(schema) if is_dataclass(item.type)}
    is_number = key in sections and value.isdigit()
    return f"{word}: must be the name of an option, see --help" if is_number else ""


def add_user_configs(argv: list[str]) -> list[str]:
    """Replace `--config-dir DIR` (default: $SKINMM_CONF) by an override that Hydra can compose."""
    rest, folder = list[str](), os.environ.get(USER_CONF)
    words = iter(argv)
    for word in words:
        key, separator, value = word.partition("=")
        if key in ("--config-dir", "-cd"):
            folder = value if separator else next(words, "")
        else:
            rest.append(word)
    if folder is None:
        return rest
    return [*rest, f"{_SEARCH_PATH}[{quote(f'file://{Path(folder).absolute()}')}]"]


def load_user_code(argv: list[str]) -> None:
    """Run the files of `plugins=`, whose components are options of the command line."""
    for word in argv:
        key, _, value = word.lstrip("+").partition("=")
        if key == "plugins":
            load_plugins(re.findall(r"[^\[\],'\"]+", value))
    require_user_configs(argv)


def require_user_configs(argv: list[str]) -> None:
    """Raise InputError if a folder of `add_user_configs` is missing."""
    for word in argv:
        if word.startswith(_SEARCH_PATH):
            folder = word.removeprefix(f"{_SEARCH_PATH}['file://").removesuffix("']")
            if not Path(folder).is_dir():
                raise InputError(f"--config-dir or {USER_CONF}: {folder}: no such folder")


def quote_override(override: str, schema: type[Any]) -> str:
    """Quote the value of an override whose setting is a path, so that Hydra reads it literally.

    In other values, words with letters such as `ä` are quoted, which Hydra's grammar lacks, unless
    the value has a backslash. Null and quoted values are unchanged. Each item of a list in brackets
    is quoted, unless a file has that name, and so are the paths within a list of mappings such as
    `data.extra`.
    """
    prefixed, _, value = override.partition("=")
    key, paths = prefixed.lstrip("+"), (*keys_with(schema, "path"), *FOLDER_KEYS)
    if names := [path.removeprefix(f"{key}[].") for path in paths if path.startswith(f"{key}[].")]:
        pattern = _PATH_IN_LIST.replace("NAMES", "|".join(names))
        return f"{prefixed}={re.sub(pattern, lambda match: match[1] + quote(match[2]), value)}"
    if not value or (key not in paths and (value.isascii() or "\\" in value)):
        return override
    if key not in paths:
        word = _WORD.replace("{}", "{}()") if re.fullmatch(_CALL, value) else _WORD
        return f"{prefixed}={re.sub(word, _quote_word, value)}"
    is_list = value.startswith("[") and value.endswith("]") and not Path(value).exists()
    if is_list and "'" not in value and '"' not in value:
        return f"{prefixed}={quote_list(item.strip() for item in value[1:-1].split(','))}"
    return override if is_list else f"{prefixed}={quote(value)}"


# PATH in [{name:...,root:PATH},...]: it ends where only a key, a mapping or the end can follow.
_PATH_IN_LIST: Final = (
    r"([{,]\s*(?:NAMES)\s*:\s*)(.*?)(?=\s*(?:,\s*\w+\s*:|\}\s*(?:,\s*\{|\]\s*$)))"
)


_WORD: Final = r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^\[\]{},:'"]+"""
_CALL: Final = r"(choice|glob|shuffle|sort|str|tag)\(.*\)"  # functions of Hydra


def _quote_word(match: re.Match[str]) -> str:
    word = match[0].strip()
    return match[0] if word.isascii() else match[0].replace(word, quote(word))


def quote(value: str) -> str:
    """Quote a value, so that Hydra reads it literally; null and quoted values are unchanged."""
    if value in ("", "null") or value[0] in "'\"":
        return value
    # Hydra reads a backslash as itself, except before a quote and at the end.
    text = load.escape_interpolation(value)
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def quote_list(values: Iterable[str]) -> str:
    """Format values as a list of quoted values, for an override."""
    return f"[{','.join(map(quote, values))}]"
