"""For whoever repeats or audits the run: every metric, the configuration, the environment."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from skinmm.report.blocks import Listing, Section, Table
from skinmm.report.format import estimate, metric
from skinmm.report.inputs import Evidence


def metrics(evidence: Evidence) -> Section:
    """Every metric of the test rows, beside those of validation where there are any."""
    validation = evidence.metrics.get("val", {}).get("metrics", {})
    header = ("Metric", "Test", "Validation") if validation else ("Metric", "Test")
    rows = []
    for name, found in evidence.measured["metrics"].items():
        beside = [estimate(validation.get(name))] if validation else []
        rows.append((metric(name), estimate(found), *beside))
    lead = "Values with intervals; a dash means that the data do not define the metric."
    return Section("metrics", "All metrics", [Table("", header, rows)], lead)


def configuration(evidence: Evidence) -> Section | None:
    """The composed configuration and the machine."""
    blocks: list[Listing | Table] = []
    if evidence.environment:
        rows = list(_flat(evidence.environment))
        blocks.append(Table("Environment", ("What", "Value"), rows))
    if evidence.config:
        text = yaml.safe_dump(dict(evidence.config), sort_keys=False, allow_unicode=True)
        blocks.append(Listing("Configuration", text))
    return Section("configuration", "Configuration", blocks) if blocks else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text
