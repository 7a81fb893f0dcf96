"""Measure the structure of the package: rooms, floors, import arrows, lines and files.

A room is a folder or a file directly below `skinmm/`. An arrow joins two rooms when a module of the
first imports from the second. A room stands one floor above the highest room that it imports.

    python benchmarks/structure.py            # the table of rooms and arrows
    python benchmarks/structure.py --picture  # the diagram of docs/architecture.md
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "skinmm"
ENTRY_POINTS: Final = ("train.py", "predict.py")


class Edge(NamedTuple):
    """One import statement.

    Attributes:
        source: dotted name of the importing module, without `skinmm.`.
        target: dotted name of the imported object.
        late: the import runs inside a function, or for type checkers only.
    """

    source: str
    target: str
    late: bool


def load_modules() -> dict[str, Path]:
    """Return the modules of the package by dotted name, and the two entry points."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return paths | {name: ROOT / name for name in ENTRY_POINTS}


def find_edges(source: str, node: ast.AST, *, late: bool = False) -> Iterator[Edge]:
    """Yield the imports below a syntax node of the module `source`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Edge(source, alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield from (Edge(source, f"{base}.{alias.name}", late) for alias in child.names)
        else:
            yield from find_edges(source, child, late=late or _is_late(child))


def room_of(module: str) -> str:
    """Return the room of a module; an entry point is a room of its own."""
    return module if module in ENTRY_POINTS else module.partition(".")[0]


def find_arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports, read from the source."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, path in load_modules().items():
        source = room_of(module)
        arrows[source].update()
        for edge in find_edges(module, ast.parse(path.read_text(encoding="utf-8"))):
            package, _, inside = edge.target.partition(".")
            if package == "skinmm" and inside:
                target = "__init__" if inside.startswith("__") else room_of(inside)
                arrows[source] |= {target} - {source}
    return dict(arrows)


def find_floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room, from 1.

    Raises:
        graphlib.CycleError: rooms import each other in a circle.
    """
    floors: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        floors[room] = 1 + max((floors[target] for target in arrows[room]), default=0)
    return floors


def count_lines() -> dict[Path, int]:
    """Return the number of lines of each Python file of the package."""
    return {
        path: path.read_text(encoding="utf-8").count("\n") for path in sorted(PACKAGE.rglob("*.py"))
    }


def draw(arrows: Mapping[str, set[str]]) -> str:
    """Return a Mermaid diagram in which indirect arrows are left out."""
    rooms = [room for room in arrows if room not in ("__init__", "__main__", *ENTRY_POINTS)]
    lines = ["flowchart TD"]
    for room in sorted(rooms):
        indirect = {far for near in arrows[room] for far in _below(near, arrows)}
        direct = sorted(target for target in arrows[room] - indirect if target in rooms)
        lines += [f"    {room} --> {target}" for target in direct]
    return "\n".join(lines)


def main() -> None:
    """Print the structure."""
    arrows = find_arrows()
    floors, lines = find_floors(arrows), count_lines()
    if "--picture" in sys.argv:
        print(draw(arrows))
        return
    for room in sorted(arrows, key=lambda name: (-floors[name], name)):
        sizes = [n for path, n in lines.items() if room == room_of(_dotted(path))]
        targets = ", ".join(sorted(arrows[room], key=lambda name: (-floors[name], name)))
        print(f"{floors[room]}  {room:<12} {len(sizes):>3} files {sum(sizes):>6} lines  {targets}")
    print(
        f"{len(arrows)} rooms, {max(floors.values())} floors, {sum(map(len, arrows.values()))} "
        f"arrows; {len(lines)} files, {sum(lines.values())} lines, longest {max(lines.values())}"
    )


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _below(room: str, arrows: Mapping[str, set[str]]) -> set[str]:
    return arrows[room].union(*(_below(target, arrows) for target in arrows[room]))


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


if __name__ == "__main__":
    main()
