"""Texts of the web page and of the browser folder: templates, formats, figures of a model card."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from skinmm.images.decode import decode
from skinmm.predict.cases import NOTICE
from skinmm.report.blocks import format_estimate, to_data_url

TITLE: Final = "skinmm: a lesion's probability of malignancy"
QUALITY: Final = 88  # of JPEG images on the page


def read_prevalence(card: Mapping[str, Any]) -> float:
    """Return the prevalence of malignancy that the calibrated probabilities assume."""
    shares = card["members"][0]["prior"]["deployed"]
    named = zip(card["classes"], shares, strict=True)
    return float(sum(share for name, share in named if name in card["positive"]))


def read_test(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the test results of a model; empty for an ensemble, whose members are tested alone."""
    members = card["members"]
    return dict(members[0]["test"]) if len(members) == 1 else {}


def list_groups(card: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return groups of test rows, see `describe_probabilities`; empty if unknown."""
    groups = read_test(card).get("probabilities") or {}
    return [dict(zip(groups, values, strict=True)) for values in zip(*groups.values(), strict=True)]


def format_probability(share: float) -> str:
    """Return a percentage with two significant digits, without decimals from 10 % on."""
    value = 100 * share
    text = "under 0.01" if value < 0.01 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"  # noqa: PLR2004
    return f"{text}\N{NO-BREAK SPACE}%"


def _load_demo_image(name: str) -> str:
    file = files("skinmm") / "demo" / "images" / f"{name}.jpg"
    return to_data_url(decode(file.read_bytes()), QUALITY)


_ENVIRONMENT: Final = Environment(
    loader=PackageLoader("skinmm.serve"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["probability"] = format_probability
_ENVIRONMENT.globals.update(notice=NOTICE, demo_image=_load_demo_image, estimate=format_estimate)


def render(template: str, **values: Any) -> str:
    """Return a rendered template."""
    return _ENVIRONMENT.get_template(template).render(values)
