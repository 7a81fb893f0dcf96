"""Components by name, from this package, installed packages and plug-in files.

Only entry points of installed packages and files that the user names are ever imported: a
checkpoint names a component, never its code.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from skinmm.errors import InputError, warn

T = TypeVar("T")
GROUPS: Final = {
    "fusion": "skinmm.fusions",
    "views": "skinmm.views",
    "tabular": "skinmm.tabular",
    "head": "skinmm.heads",
    "model": "skinmm.backbones",
    "loss": "skinmm.losses",
    "sampler": "skinmm.samplers",
    "augment": "skinmm.augments",
    "mix": "skinmm.mixes",
    "optimizer": "skinmm.optimizers",
    "segmenter": "skinmm.segmenters",
    "data": "skinmm.adapters",
}
"""Kind of component, which is its section of the configuration -> group of entry points."""
OF_NETWORK: Final = ("fusion", "views", "tabular", "head", "model", "segmenter")
"""Kinds that prediction needs."""


class Plugin(NamedTuple):
    """Plug-in component, or the entry point that loads it, and its source."""

    source: dict[str, str]
    component: Any


_registered: dict[str, dict[str, Plugin]] = {kind: {} for kind in GROUPS}
_tables: dict[str, "Registry[Any]"] = {}
_files: dict[str, str] = {}  # module -> name of a file that `load_plugins` has run


class Registry(Mapping[str, T]):
    """Components of a kind by name: `included` in this package, and plug-ins."""

    def __init__(self, kind: str, **included: T) -> None:
        self._kind, self._included = kind, included
        _tables[kind] = self
        for name, plugin in _registered[kind].items():
            self.require_free(name, plugin)

    def __getitem__(self, name: str) -> T:
        """Return a component; load it if it is an entry point of an installed package."""
        plugin = find_plugins(self._kind).get(name)
        if plugin is None:
            return self._included[name]
        self.require_free(name, plugin)
        if not isinstance(plugin.component, metadata.EntryPoint):
            return plugin.component
        try:
            return plugin.component.load()
        except Exception as error:
            title = describe(self._kind, name, plugin.source)
            raise InputError(f"{title} cannot be imported: {error!r}") from error

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, plug-ins last."""
        return iter({**self._included, **find_plugins(self._kind)})

    def __len__(self) -> int:
        """Return the number of names."""
        return len({**self._included, **find_plugins(self._kind)})

    def require_free(self, name: str, plugin: Plugin) -> None:
        """Raise InputError if a plug-in has the name of a component of this package."""
        if name in self._included:
            title = describe(self._kind, name, plugin.source)
            raise InputError(f"{title} has the name of a component of skinmm; rename it")


def register(kind: str, name: str, component: Any) -> None:
    """Add a component of a kind under a name that is not in use."""
    plugin = Plugin(_find_source(component), component)
    _add(find_plugins(kind), kind, name, plugin)
    if kind in _tables:
        _tables[kind].require_free(name, plugin)
    _registered[kind][name] = plugin


def _add(plugins: dict[str, Plugin], kind: str, name: str, plugin: Plugin) -> None:
    if name in plugins and plugins[name].source != plugin.source:
        titles = (describe(kind, name, source) for source in (plugins[name].source, plugin.source))
        raise InputError(f"{' and '.join(titles)}: remove or rename one of them")
    plugins[name] = plugin


def find_plugins(kind: str) -> dict[str, Plugin]:
    """Return the plug-ins of a kind by name; entry points are not imported."""
    return {**_find_installed(kind), **_registered[kind]} if kind in GROUPS else {}


@cache
def _find_installed(kind: str) -> dict[str, Plugin]:
    plugins: dict[str, Plugin] = {}
    for entry in metadata.entry_points(group=GROUPS[kind]):
        source = {"package": entry.dist.name, "version": entry.dist.version} if entry.dist else {}
        _add(plugins, kind, entry.name, Plugin(source, entry))
    return plugins


def load_plugins(paths: list[str]) -> None:
    """Run Python files that register components, each file once."""
    for path in map(Path, paths):
        name = f"skinmm_plugin_{path.stem}_{sha256(str(path.absolute()).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            continue
        if path.suffix != ".py" or not path.is_file():
            raise InputError(f"plugins={path}: no such Python file; give the path of a .py file")
        _files[name] = path.name
        spec = util.spec_from_file_location(name, path)
        module = util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, InputError):
                error.add_note(f"in the file of plugins={path}")
            raise


def list_sources(names: Mapping[str, str]) -> list[dict[str, str]]:
    """Return kind, name and source of the plug-ins among components (`kind -> name`)."""
    plugins = {kind: find_plugins(kind).get(name) for kind, name in names.items()}
    return [
        {"kind": k, "name": names[k], **plugin.source} for k, plugin in plugins.items() if plugin
    ]


def require_sources(path: Path, parts: list[dict[str, str]]) -> None:
    """Raise InputError if the network of a checkpoint needs plug-ins that are not installed."""
    for part in (part for part in parts if part["kind"] in OF_NETWORK):
        source = {key: value for key, value in part.items() if key not in ("kind", "name")}
        title = describe(part["kind"], part["name"], source)
        present = find_plugins(part["kind"]).get(part["name"])
        if present is None:
            advice = "register it in Python before, as in training"
            if "package" in part:
                advice = f"pip install '{part['package']}=={part['version']}'"
            elif "file" in part:
                advice = f"give plugins=[PATH/{part['file']}]"
            raise InputError(f"{path}: {title} is missing: {advice}")
        if present.source != source:
            _warn_once(f"{path}: trained with {title}, which has another source or version here")


def _registrar(kind: str) -> Callable[[str, Any], None]:
    def add(name: str, component: Any) -> None:
        register(kind, name, component)

    add.__doc__ = f"Register a component under the name that `{kind}=` selects."
    return add


register_adapter, register_augment, register_backbone, register_encoder, register_fusion = map(
    _registrar, ("data", "augment", "model", "tabular", "fusion")
)
register_head, register_loss, register_sampler, register_views = map(
    _registrar, ("head", "loss", "sampler", "views")
)


def describe(kind: str, name: str, source: Mapping[str, str]) -> str:
    """Return the kind and name of a plug-in, and its package or file."""
    origin = f"the file {source['file']}" if "file" in source else "a Python session"
    if "package" in source:
        origin = f"the package {source['package']} {source['version']}"
    return f"{kind} '{name}' of {origin}"


_warn_once = cache(warn)


def _find_source(component: Any) -> dict[str, str]:
    module = getattr(component, "__module__", None) or ""
    if module in _files:
        return {"file": _files[module]}
    packages = metadata.packages_distributions().get(module.partition(".")[0], [])
    return {"package": n, "version": metadata.version(n)} if (n := next(iter(packages), "")) else {}
