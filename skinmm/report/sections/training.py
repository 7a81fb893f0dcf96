"""How training went, and what the model started from."""

import numpy as np
import pandas as pd

from skinmm.report.blocks import Block, Note, Plot, Row, Section
from skinmm.report.figures import curves
from skinmm.report.figures.curves import Line
from skinmm.report.inputs import Evidence


def training(evidence: Evidence) -> Section | None:
    """One drawing per logged quantity; training and validation share one where both have it."""
    blocks: list[Block] = []
    if evidence.initialisation:
        blocks.append(Note(f"Initialisation: {evidence.initialisation}."))
    if evidence.history is not None:
        plots = [_plot(name, rows) for name, rows in _quantities(evidence.history)]
        blocks.append(Row(plots))
    return Section("training", "Training", blocks) if blocks else None


def _quantities(history: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    parts = history["name"].str.partition("/")
    table = history.assign(part=parts[0], quantity=parts[2].where(parts[2] != "", parts[0]))
    # What was measured once, on the test part, has no course.
    table = table[np.isfinite(table["value"]) & table["epoch"].notna() & (table["part"] != "test")]
    quantities = [(str(name), rows) for name, rows in table.groupby("quantity", sort=False)]
    return sorted(quantities, key=lambda item: item[0] != "loss")


def _plot(name: str, rows: pd.DataFrame) -> Plot:
    several = rows["run"].nunique() > 1
    lines = []
    for (part, run), values in rows.groupby(["part", "run"]):
        means = values.groupby("epoch")["value"].mean()
        label = f"{part} {run}" if several else str(part)
        lines.append(Line(label, means.index.to_numpy(float), means.to_numpy(float)))
    return Plot(name, curves.training(name, lines))
