"""Pages that MkDocs makes at build time from the code, the schema and files of the repository.

Links to files of the repository that are no page of the site become text: no address is assumed.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any, Final

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
COPIES: Final = {
    "index.md": "docs/site/index.md",
    "readme.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "zoo.md": "skinmm/zoo/cc0.md",
}
"""Page of the site -> file of the repository."""
CUT: Final = 0.5
LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in COPIES.items()}
    pages |= {
        "settings.md": format_settings(),
        "metrics.md": format_metrics(),
        "api.md": format_api(),
        "testing.md": format_testing(),
        "figures.md": format_figures(),
    }
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Point links of the repository at pages of the site, or remove them."""
    name = page.file.src_uri
    origin = f"docs/{name}" if name == "index.md" else COPIES.get(name, f"docs/{name}")
    return re.sub(LINK, lambda match: _relink(match, origin, files), markdown)


def _relink(match: re.Match[str], origin: str, files: Files) -> str:
    picture, label, target, anchor = match[1], match[2], match[3], match[4] or ""
    if not target:
        return match[0]
    path = normpath(f"{Path(origin).parent.as_posix()}/{target}")
    by_origin = {source: name for name, source in COPIES.items()}
    name = by_origin.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(name):
        return f"{picture}[{label}]({name}{anchor})"
    return "" if picture else label


def format_settings() -> str:
    """Return every setting of every command, from the schema."""
    from skinmm.cli.main import COMMANDS

    lines = [
        "# Settings\n\nEvery setting of every command, generated from the schema: `KEY=VALUE` on "
        "the command line, a keyword argument [in Python](python.md), or a file in your own folder "
        "of configurations (`--config-dir`, `SKINMM_CONF`). `skinmm COMMAND --help` prints them."
    ]
    for command in COMMANDS.values():
        lines.append(f"\n## skinmm {command.name}\n\n{command.help}.\n")
        lines += ["| setting | default | meaning | allowed |", "| --- | --- | --- | --- |"]
        lines += _setting_rows(command.schema(), "")
    return "\n".join(lines)


def _setting_rows(settings: Any, prefix: str) -> Iterator[str]:
    from skinmm.config.setting import format_bounds

    for item in fields(settings):
        key, value = f"{prefix}{item.name}", getattr(settings, item.name)
        if is_dataclass(value):
            yield from _setting_rows(value, f"{key}.")
            continue
        choices, low, high = (item.metadata[name] for name in ("choices", "low", "high"))
        allowed = ", ".join(choices) if choices else ""
        if choices is None and not low is high is None:
            allowed = format_bounds(low, high)
        default = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
        cells = (f"`{key}`", f"`{default}`", item.metadata["explanation"], allowed)
        yield format_row(cells)


def format_row(cells: Sequence[str]) -> str:
    """Format a row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def measure_example() -> dict[str, Any]:
    """Return every metric of files with classes, decisions, patients and sources."""
    import numpy as np

    from skinmm.evaluation.metrics import evaluate
    from skinmm.evaluation.predictions import BINARY, Predictions

    rng, rows = np.random.default_rng(0), 240
    metrics: dict[str, Any] = {}
    for classes, positive in (
        (("benign", "malignant"), ("malignant",)),
        (("bcc", "mel", "nv"), ("bcc", "mel")),
    ):
        target = rng.integers(0, len(classes), rows)
        scores = rng.random((rows, len(classes))) + np.eye(len(classes))[target]
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        is_called = probabilities[:, np.isin(classes, positive)].sum(axis=1) > CUT
        decision = np.where(is_called, "malignant", "benign").astype(object)
        decision[::5] = "refer"
        predictions = Predictions(
            image_id=np.array([f"i{number}" for number in range(rows)], dtype=object),
            patient_id=np.array([f"p{number % 12}" for number in range(rows)], dtype=object),
            target=target,
            probabilities=probabilities,
            raw=None,
            classes=classes,
            positive=positive,
            decision=decision,
            sets=probabilities > CUT / 2,
            ood=rng.random(rows),
            called=None if classes == BINARY else probabilities.argmax(axis=1),
            unit=np.full(rows, "patient", dtype=object),
            source=np.array([f"s{number % 2}" for number in range(rows)], dtype=object),
        )
        metrics |= evaluate(predictions, resamples=0)["metrics"]
    return metrics


def find_metric(name: str, entries: dict[str, Any]) -> dict[str, str] | None:
    """Return the entry of a metric; those of single classes share one, `recall_CLASS`."""
    stem = re.sub(r"_(bcc|mel|nv|benign|malignant)$", "_CLASS", name)
    return entries.get(name) or entries.get(stem)


def format_metrics() -> str:
    """Return the table of metrics: name, label, definition, formula, source."""
    from skinmm.report.blocks import metric_label

    content = yaml.safe_load((ROOT / "docs" / "site" / "metrics.yaml").read_text(encoding="utf-8"))
    lines = [content["text"]]
    groups: dict[str, list[str]] = {name: [] for name in content["groups"]}
    done = set()
    for name in measure_example():
        entry = find_metric(name, content["metrics"])
        if entry is None:
            raise ValueError(f"docs/site/metrics.yaml has no entry for the metric {name}")
        key = name if name in content["metrics"] else re.sub(r"_[a-z]+$", "_CLASS", name)
        if key in done:
            continue
        done.add(key)
        label = metric_label(name) if key == name else key
        formula = f"`{entry['formula']}`"
        cells = (f"`{key}`<br>{label}", entry["definition"], formula, entry.get("source", ""))
        groups[entry["group"]].append(format_row(cells))
    for group, rows in groups.items():
        header = ("metric", "definition", "formula", "source")
        lines += [f"\n## {group}\n", format_row(header), format_row(["---"] * 4), *rows]
    return "\n".join(lines)


def format_api() -> str:
    """Return the page of the exported names, in the order of the package."""
    import skinmm

    lines = [
        "# Python API\n\nThe names that `skinmm` exports. [Python and notebooks](python.md) has "
        "examples, [plug-ins](plugins.md) the functions that register components.\n"
    ]
    for name in skinmm.__all__:
        value = getattr(skinmm, name)
        if name.startswith("register_"):
            lines.append(f"## {name}\n\n`skinmm.{name}(name, component)`: {value.__doc__}\n")
        else:
            lines.append(f"::: {value.__module__}.{name}\n")
    return "\n".join(lines)


def format_testing() -> str:
    """Return the page of the contract tests."""
    from skinmm import testing

    names = [name for name, value in vars(testing).items() if inspect.isfunction(value)]
    own = [name for name in names if name.startswith("check_")]
    return "# Contract tests\n\n" + "\n\n".join(f"::: skinmm.testing.{name}" for name in own)


def format_figures() -> str:
    """Return the gallery: the figures of a report, from an example without a model."""
    import numpy as np
    import pandas as pd

    import skinmm

    rng, rows = np.random.default_rng(0), 900
    truth = rng.random(rows) < CUT / 3
    logits = 2.2 * truth + rng.normal(size=rows) - 2.6
    raw = 1 / (1 + np.exp(-1.7 * logits))
    table = pd.DataFrame(
        {
            "image_id": [f"image_{n}" for n in range(rows)],
            "patient_id": [f"patient_{n}" for n in rng.integers(0, 450, rows)],
            "target": truth.astype(int),
            "age": rng.integers(20, 90, rows),
            "sex": rng.choice(["female", "male"], rows),
            "site": rng.choice(["torso", "head/neck", "lower extremity"], rows),
            "p_benign": 1 - 1 / (1 + np.exp(-logits)),
            "p_malignant": 1 / (1 + np.exp(-logits)),
            "raw_benign": 1 - raw,
            "raw_malignant": raw,
        }
    )
    lines = [
        "# Figures\n\nThe figures of a report, here of 900 simulated lesions. Every report has "
        "them as SVG that needs no network; in Python they are `run.figures`.\n"
    ]
    for title, figure in skinmm.evaluate(table).figures.items():
        lines.append(f"## {title}\n\n{figure._repr_html_()}\n")
    return "\n".join(lines)
