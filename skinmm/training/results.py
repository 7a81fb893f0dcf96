"""Results for scripts and notebooks: metrics and predictions as tables, figures as SVG."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from skinmm.errors import InputError
from skinmm.report.blocks import Plot, Section, Table
from skinmm.report.compare import build_comparison
from skinmm.report.inputs import ReportInputs, read_mapping, read_run
from skinmm.report.sections import SECTIONS
from skinmm.report.sections.headline import build_tiles
from skinmm.report.sections.verdict import build_verdict

if TYPE_CHECKING:
    from skinmm.predict import Predictor


class Figure(Plot):
    """Figure that a notebook displays."""

    def _repr_html_(self) -> str:
        style = "margin:0;width:24em;max-width:100%;background:#fff;color:#000"
        text = f"<figcaption>{escape(self.title)}. {escape(self.caption)}</figcaption>"
        return f"<figure style='{style}'>{self.svg}{text}</figure>"


class Evaluation:
    """Metrics with intervals, and figures, of the predictions of any system."""

    def __init__(self, read: Callable[[], ReportInputs]) -> None:
        self._read = read

    @cached_property
    def _inputs(self) -> ReportInputs:
        return self._read()

    @property
    def metrics(self) -> pd.DataFrame:
        """Value and interval (`low`, `high`) of each metric; missing if it is undefined."""
        entries, names = self._inputs.measured["metrics"], ["value", "low", "high"]
        rows = [[entry.get(name) for name in names] for entry in entries.values()]
        return pd.DataFrame(rows, pd.Index(entries, name="metric"), names, dtype=float)

    @property
    def predictions(self) -> pd.DataFrame:
        """Evaluated rows: image, patient, target and probability of each class."""
        rows = self._inputs.predictions
        names = pd.Series(rows.classes, dtype=object)
        columns: dict[str, Any] = {"image_id": rows.image_id, "patient_id": rows.patient_id}
        columns["target"] = rows.target if rows.is_binary else names[rows.target].to_numpy()
        columns |= {f"p_{n}": rows.probabilities[:, i] for i, n in enumerate(rows.classes)}
        return pd.DataFrame(columns)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Figures of the report by title, in reading order."""
        return _collect_figures(build(self._inputs) for build in SECTIONS.values())

    def _repr_html_(self) -> str:
        tiles = [tile[:3] for tile in build_tiles(self._inputs)]
        table = pd.DataFrame(tiles, columns=["", "value", "interval"]).to_html(index=False)
        figures = _collect_figures([SECTIONS["curves"](self._inputs)])
        titles = [name for name in figures if name == "ROC curve" or "alibration" in name][:2]
        verdict = escape(build_verdict(self._inputs).title)
        drawings = [figures[name]._repr_html_() for name in titles]
        return _wrap(f"<p><b>{verdict}</b></p>", table, *drawings)


class Run(Evaluation):
    """Finished run in the folder `path`: test metrics, predictions, figures, report and model."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.report = self.path / "report.html"
        super().__init__(lambda: read_run(self.path, pictures=False))
        if not (self.path / "metrics.json").is_file():
            advice = f"give a run folder, or continue it with skinmm.fit(resume={str(path)!r})"
            raise InputError(f"{path}: not a finished run (metrics.json is missing); {advice}")

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the run."""
        return read_mapping(self.path / "config.yaml")

    def read_predictions(self, part: str = "test") -> pd.DataFrame:
        """Return the prediction file of a part of the data: `test`, `val` or `calibration`."""
        file = self.path / "predictions" / f"{part}.csv"
        if not file.is_file():
            names = sorted(path.stem for path in file.parent.glob("*.csv"))
            raise InputError(f"{part}: no predictions of this part; choose from {', '.join(names)}")
        return pd.read_csv(file, dtype={"image_id": str, "patient_id": str})

    def predictor(self, **options: Any) -> "Predictor":
        """Return the predictor of the run; `options` as for `Predictor.from_checkpoints`."""
        from skinmm.predict.predictor import Predictor

        return Predictor.from_checkpoints(self.path, **options)


class Comparison:
    """Several systems on the same images: `tables` and `figures` by title, and `notes`.

    The table `Systems` has a row for each system, `Differences` for each pair.
    """

    def __init__(self, systems: Mapping[str, Evaluation], **options: Any) -> None:
        inputs = {name: system._inputs for name, system in systems.items()}
        sections, _, notes = build_comparison(inputs, **options)
        self.tables = {
            block.caption or section.title: pd.DataFrame(block.rows, columns=[*block.header])
            for section in sections
            for block in section.blocks
            if isinstance(block, Table)
        }
        self.figures = _collect_figures(sections)
        self.notes = [note.text for note in notes]

    def _repr_html_(self) -> str:
        tables = [f"<h4>{escape(n)}</h4>{t.to_html(index=False)}" for n, t in self.tables.items()]
        lines = [f"<p>{escape(note)}</p>" for note in self.notes]
        drawings = [figure._repr_html_() for figure in self.figures.values()]
        return _wrap(*tables, *lines, *drawings[:1])


def _collect_figures(sections: Iterable[Section | None]) -> dict[str, Figure]:
    """Return all figures of sections by title, including nested ones."""
    figures, pending = {}, [block for section in sections if section for block in section.blocks]
    while pending:
        block: Any = pending.pop(0)
        if isinstance(block, Plot):
            figures[block.title] = Figure(block.title, block.svg, block.caption)
        pending[:0] = getattr(block, "blocks", getattr(block, "parts", ()))
    return figures


def _wrap(*parts: str) -> str:
    style = "display:flex;flex-wrap:wrap;gap:1em;align-items:start"
    return f"<div style='{style}'>{''.join(parts)}</div>"
