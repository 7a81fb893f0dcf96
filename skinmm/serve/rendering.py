"""Texts of the web page and of the browser folder: words, templates, figures of a model card."""

import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import escape

from skinmm.errors import InputError
from skinmm.images.decode import decode, decode_within
from skinmm.predict.cases import Case
from skinmm.predict.explain import Explanation
from skinmm.report.blocks import format_estimate, to_data_url

Texts = dict[str, Any]
"""Words of the pages: sentences by name, in sections."""
AUDIENCES: Final = ("clinician", "patient")
DISPLAY_SIDE: Final = 480  # pixels of the longer side of an image on the page
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
    """Return groups of test rows with similar probabilities; empty if the card has none."""
    groups = read_test(card).get("probabilities") or {}
    return [dict(zip(groups, values, strict=True)) for values in zip(*groups.values(), strict=True)]


def format_probability(share: float) -> str:
    """Return a percentage with two significant digits, without decimals from 10 % on."""
    value = 100 * share
    text = "<0.01" if value < 0.01 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"  # noqa: PLR2004
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
_ENVIRONMENT.globals.update(demo_image=_load_demo_image, estimate=format_estimate)


_VALUE: Final = re.compile(r"\{(\w+)\}")
ENGLISH: Final[Texts] = tomllib.loads(
    (files("skinmm.serve") / "texts.toml").read_text(encoding="utf-8")
)


def render(template: str, texts: Texts = ENGLISH, **values: Any) -> str:
    """Return a rendered template with the words `text`."""
    return _ENVIRONMENT.get_template(template).render(values, text=_escape(texts))


def load_texts(path: str | None) -> Texts:
    """Return the words in a TOML file, a translation of `texts.toml`; None: English.

    Raises:
        InputError: the file has not the names of the English one, or a sentence not its values.
    """
    if path is None:
        return ENGLISH
    try:
        texts = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        _require_same(ENGLISH, texts, "")
    except (OSError, ValueError) as error:
        raise InputError(f"texts={path}: {error}") from error
    if not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]+)*", texts["language"]):
        raise InputError(f"texts={path}: language={texts['language']!r} must be a code such as de")
    return texts


def _require_same(english: Any, words: Any, name: str) -> None:
    """Raise ValueError if words differ from the English ones in structure or in their values."""
    if type(words) is not type(english):
        kind = {"dict": "section", "list": "list of texts"}.get(type(english).__name__, "text")
        raise ValueError(f"{name} must be a {kind}")
    if isinstance(english, str):
        if _list_values(words) != _list_values(english):
            raise ValueError(f"{name} needs the values of {english!r}, and no other braces")
        return
    if isinstance(english, list):
        english, words = (dict(enumerate(part, start=1)) for part in (english, words))
    for problem, keys in ("lacks", english.keys() - words), ("has unknown", words.keys() - english):
        if keys:
            names = sorted(f"{name}.{key}".strip(".") for key in keys)
            raise ValueError(f"{problem} {', '.join(names)}")
    for key, part in english.items():
        _require_same(part, words[key], f"{name}.{key}".strip("."))


def _list_values(sentence: str) -> set[str]:
    """Return the names in braces, and each other brace."""
    return {*_VALUE.findall(sentence), *re.findall("[{}]", _VALUE.sub("", sentence))}


def _escape(words: Any) -> Any:
    """Return words as HTML, in which values are escaped as well."""
    if isinstance(words, dict):
        return {name: _escape(part) for name, part in words.items()}
    return [*map(_escape, words)] if isinstance(words, list) else escape(words)


class Result(NamedTuple):
    """Prediction of a case, with everything that the page displays."""

    case: Case
    row: dict[str, Any]
    explanation: Explanation
    card: Mapping[str, Any]
    min_side: int = 0  # side of the network's input in pixels if the image is smaller
    blurred: bool = False

    @property
    def similar(self) -> dict[str, float]:
        """Test rows of similar probability; empty if unknown."""
        groups = list_groups(self.card)
        index = int(np.searchsorted([group["last"] for group in groups], self.row["malignancy"]))
        return groups[min(index, len(groups) - 1)] if groups else {}


def render_result(result: Result, audience: str = AUDIENCES[0], texts: Texts = ENGLISH) -> str:
    """Return a result as HTML."""
    changes = [*result.explanation.contributions.largest().items()]
    explanation = result.explanation
    images = [
        {
            "name": image.name,
            "view": f" ({texts['choices'][image.view]})" if image.view else "",
            "original": to_data_url(decode_within(image.data, DISPLAY_SIDE, image.frame), QUALITY),
            "heat_map": to_data_url(drawing, QUALITY),
        }
        for image, drawing in zip(
            explanation.images, explanation.draw(DISPLAY_SIDE), strict=bool(explanation.heats)
        )
    ]
    facts = {"test": read_test(result.card), "prevalence": read_prevalence(result.card)}
    choices = {"audience": audience, "images": images, "changes": changes}
    return render("result.html", texts, result=result, **facts, **choices)
