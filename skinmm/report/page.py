"""Sections to one self-contained HTML file."""

from collections.abc import Sequence
from pathlib import Path

import skinmm
from skinmm.errors import InputError
from skinmm.files import atomic_write
from skinmm.report.blocks import Section


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Keeps a file that is there already.

    Raises:
        InputError: `output` exists and `overwrite` is false.
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; give another name or overwrite=true")


def write_page(
    output: Path, *, title: str, facts: Sequence[str], sections: Sequence[Section]
) -> Path:
    """Renders the page and puts it in place by rename, so no reader meets half a page.

    Args:
        output: the file to write; its folder is made where missing.
        title: what the page is about.
        facts: short remarks under the title (date, model, data).
        sections: the chapters in reading order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("skinmm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=title, facts=facts, sections=sections, version=skinmm.__version__
    )
    return put(text, output)


def put(text: str, output: Path) -> Path:
    """Writes a file by rename; its folder is made where missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        # Ids read from odd file systems may hold lone surrogates, which UTF-8 cannot.
        partial.write_text(text, encoding="utf-8", errors="replace")
    return output
