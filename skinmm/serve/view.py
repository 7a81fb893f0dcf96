"""A prediction as a person reads it: HTML of one result, for clinicians or for patients."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from html import escape
from io import BytesIO
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from skinmm.predict.explain import Explanation, decode_for_display, overlay
from skinmm.predict.single_case import NOTICE, Case

AUDIENCES: Final = ("clinician", "patient")
_WHOLE, _LEAST = 9.95, 0.01  # percent: no decimals from here on, no figure below
SIDE: Final = 480  # pixels of a picture on the page
_HEADS: Final = {
    "malignant": ("Suspicious", "The probability is at or above the threshold."),
    "benign": ("Not suspicious", "The probability is below the threshold."),
    "refer": ("Not decided", "The model hands this lesion over to a person."),
}
_PATIENT_HEADS: Final = {
    "malignant": ("Have this looked at soon", "The program finds this spot conspicuous."),
    "benign": ("Nothing conspicuous found", "The program can be wrong, also about harmless looks."),
    "refer": ("The program cannot tell", "A person has to look at this spot."),
}
_ADVICE: Final = (
    "Whatever stands here: show a spot that is new, changes, itches or bleeds to a doctor."
)
_SEEN: Final = "Where the image speaks for malignancy: the more yellow, the more."


class Judged(NamedTuple):
    """What a page shows of a case.

    Attributes:
        case: as it was sent.
        row: what the service said.
        reasons: why.
        card: of the model.
        small: the side of the network's square, where the image is smaller than that.
        blurred: whether the image is.
    """

    case: Case
    row: Mapping[str, Any]
    reasons: Explanation
    card: Mapping[str, Any]
    small: int = 0
    blurred: bool = False


def result(judged: Judged, audience: str = AUDIENCES[0]) -> str:
    """One case's result."""
    parts = [*_head(judged, audience), *_warnings(judged), *_pictures(judged)]
    if audience == AUDIENCES[0]:
        parts += [*_inputs(judged), *_meaning(judged)]
    else:
        parts.append(f"<p>{_ADVICE}</p>")
    if "case" in judged.row:
        parts.append(f"<p>Kept as case <b>{judged.row['case']}</b>.</p>")
    parts.append(f'<p class="notice">{escape(NOTICE)}</p>')
    return f'<article class="result" aria-label="Result">{"".join(parts)}</article>'


def refusal(reason: str) -> str:
    """What went wrong."""
    return f'<p class="refusal" role="alert">{escape(reason)}</p>'


def picture_html(pixels: UInt8[np.ndarray, "_ _ 3"], words: str) -> str:
    """A picture inside the page, with words for who does not see it."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=88)
    data = b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(words)}">'


def _head(judged: Judged, audience: str) -> Iterator[str]:
    row = judged.row
    heads = _HEADS if audience == AUDIENCES[0] else _PATIENT_HEADS
    title, words = heads[row["decision"]]
    chance, threshold = row["malignancy"], row["threshold"]
    yield f'<h2 class="decision {row["decision"]}">{title}</h2><p>{words}</p>'
    yield f'<p class="chance"><b>{percent(chance)}</b> probability of malignancy</p>'
    yield (
        f'<div class="scale" role="img" aria-label="{percent(chance)} on a scale from 0 to 100 %, '
        f'threshold {percent(threshold)}"><i style="width:{100 * chance:.2f}%"></i>'
        f'<b style="left:{100 * threshold:.2f}%"></b></div>'
        f'<p class="small">The mark is the threshold, {percent(threshold)}.</p>'
    )
    calibrated = any(member["calibration"] for member in judged.card["members"])
    if calibrated:
        yield (
            f"<p>Of 100 lesions with this probability, about {round(100 * chance)} are expected to "
            "be malignant, if they come as the lesions came that the model was fitted to.</p>"
        )


def _warnings(judged: Judged) -> Iterator[str]:
    row = judged.row
    found = [f"{name} was not understood and counts as missing." for name in row["unknown"]]
    missing = [name for name in row["missing"] if name not in row["unknown"]]
    if missing:
        found.append(f"Predicted without {' and '.join(missing)}.")
    if (row["ood"] or 0) > 1:
        found.append("Unlike the lesions that the model was checked on: do not rely on it here.")
    if any(member["calibration"] is None for member in judged.card["members"]):
        found.append("The model was never checked: probability and threshold are not calibrated.")
    if judged.small:
        found.append(
            f"The image is smaller than the {judged.small} pixels that the network looks at."
        )
    if judged.blurred:
        found.append("The image is blurred: take another one, with the lens on the skin.")
    if found:
        items = "".join(f"<li>{escape(each)}</li>" for each in found)
        yield f'<div class="warnings" role="note"><b>Mind</b><ul>{items}</ul></div>'


def _pictures(judged: Judged) -> Iterator[str]:
    image, heat = judged.case.image, judged.reasons.heat
    if image is None or heat is None:
        return
    pixels = decode_for_display(image, judged.case.frame, SIDE)
    seen = pixels if judged.reasons.pixels is None else judged.reasons.pixels
    yield '<div class="pictures"><figure>'
    yield picture_html(pixels, "The lesion as it was sent")
    yield "<figcaption>As it was sent.</figcaption></figure><figure>"
    yield picture_html(overlay(seen, heat), "The lesion under the heat map")
    yield f"<figcaption>{_SEEN} It shows what moved the network, not where disease is."
    yield "</figcaption></figure></div>"


def _inputs(judged: Judged) -> Iterator[str]:
    """What each input added, in points of a hundred."""
    found = judged.reasons.contributions
    if not found.added:
        return
    largest = max(map(abs, found.added.values())) or 1.0
    yield '<table><caption>What moved the probability</caption><thead><tr><th scope="col">Input'
    yield '</th><th scope="col">Value</th><th scope="col" colspan="2">Points</th></tr></thead>'
    yield "<tbody>"
    yield _line("nothing known", "", f"{100 * found.start:.1f}", "")
    for name, added in sorted(found.added.items(), key=lambda item: -abs(item[1])):
        value = "as sent" if name == "image" else _cell(judged.reasons.record.get(name))
        side = "up" if added > 0 else "down"
        bar = f'<i class="{side}" style="width:{100 * abs(added) / largest:.1f}%"></i>'
        yield _line(name, value, f"{100 * added:+.1f}", bar)
    yield _line("<b>together</b>", "", f"<b>{100 * judged.row['malignancy']:.1f}</b>", "")
    yield "</tbody></table>"
    share = found.share("image")
    if share is not None and judged.reasons.heat is not None:
        yield f'<p class="small">{percent(share)} of the movement is the image\'s, the rest is '
        yield "the record's (Shapley values).</p>"


def _meaning(judged: Judged) -> Iterator[str]:
    """What the threshold and the set mean, as tested."""
    members, row = judged.card["members"], judged.row
    if any(member["calibration"] is None for member in members):
        return
    test = members[0]["test"] if len(members) == 1 else {}
    metrics = test.get("metrics", {})
    yield "<h3>What that means</h3><ul>"
    if test and {"ppv", "npv", "sensitivity"} <= metrics.keys():
        lesions = f"{test['n']} lesions, {test['positives']} of them malignant"
        yield (
            f"<li>In the test set ({lesions}), of 100 lesions at or above the threshold "
            f"{_of_hundred(metrics['ppv'])} were malignant; of 100 below it, "
            f"{_of_hundred(metrics['npv'])} were benign. Of 100 malignant ones "
            f"{_of_hundred(metrics['sensitivity'])} were at or above it.</li>"
        )
    sets = members[0]["prediction_sets"]
    if sets and row["prediction_set"]:
        names = " or ".join(row["prediction_set"])
        yield f"<li>Prediction set: {escape(names)}. Such sets hold the true class of "
        yield f"{round(100 * sets['coverage'])} in 100 lesions of each class.</li>"
    if row["ood"] is not None:
        yield f"<li>Unfamiliarity {row['ood']:.2f}; above 1 is unlike validation.</li>"
    yield "</ul>"


def _line(*cells: str) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _cell(value: Any) -> str:
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def percent(share: float) -> str:
    """A share as a percentage, with as many digits as can be read at a glance."""
    value = 100 * share
    digits = f"{value:.0f}" if value >= _WHOLE else f"{value:.2g}"
    return f"{digits if value >= _LEAST else f'under {_LEAST}'}\N{NO-BREAK SPACE}%"


def _of_hundred(measured: Mapping[str, Any]) -> str:
    """A share as a count, with its interval."""
    value, low, high = (measured.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "an unknown number"
    bounds = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"
    return f"{100 * value:.0f}{bounds}"
