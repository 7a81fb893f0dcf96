"""What the page teaches: signs of melanoma, dermoscopy, and what this tool is not."""

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any, Final

from skinmm.images.decode import decode
from skinmm.predict.single_case import NOTICE
from skinmm.serve.view import picture_html

# Pictures of the embedded cohort (ISIC 2017, CC0), chosen by eye for the sign they show.
_SIGNS: Final = (
    ("A", "Asymmetry", "One half is unlike the other.", "ISIC_0000166", "Melanoma"),
    ("B", "Border", "It is notched, ragged or fades out.", "ISIC_0000172", "Melanoma"),
    (
        "C",
        "Colour",
        "Several browns, black, red, white or blue in one.",
        "ISIC_0000289",
        "Melanoma",
    ),
    ("D", "Diameter", "Over 6 mm; here the ruler says 10 mm.", "ISIC_0000516", "Melanoma"),
    (
        "E",
        "Evolving",
        "It changes in size, shape, colour or feeling: no one picture shows that.",
        "",
        "",
    ),
)
_OTHERS: Final = (
    ("ISIC_0000261", "Not a melanoma", "Even in colour, shape and border."),
    ("ISIC_0000297", "Melanoma", "Small and fairly regular: the rule misses some."),
)
_LEARN: Final = """
<h2>The ABCDE rule</h2>
<p>Signs that make a pigmented spot worth a doctor's look (Abbasi et al. 2004,
doi:10.1001/jama.292.22.2771). None is proof, and a melanoma may show none.</p>
<div class="cards">{signs}</div>
<h2>The rule is not enough</h2>
<div class="cards">{others}</div>
<p>A spot that looks unlike all others of the same person (the ugly duckling) is worth a look too.
Melanomas without pigment and those under nails fit no rule.</p>
<h2>What dermoscopy is</h2>
<p>A magnifying lens with its own light, polarised or through a film of liquid, takes away the
skin's glare and shows structures below its surface. This model learned from such pictures. A photo
of a phone without that lens is another kind of picture: it is not made for it.</p>
<h2>What this tool is not</h2>
<ul>
<li>No diagnosis: only a pathologist's look at tissue gives one.</li>
<li>No replacement for a full look at the skin: it sees one spot, cut out of its surroundings.</li>
<li>Not checked for all: few pictures of dark skin, of children, of nails and mucosa are in public
collections.</li>
<li>No reassurance: a low probability does not make a changing spot harmless.</li>
</ul>
<p class="notice">{notice}</p>
"""


def learn_html() -> str:
    """The education part."""
    return _LEARN.format(signs="".join(_signs()), others="".join(_cards()), notice=escape(NOTICE))


def about_html(card: Mapping[str, Any]) -> str:
    """The model card."""
    facts = [
        ("Classes", ", ".join(card["classes"])),
        ("Malignant are", ", ".join(card["positive"])),
        ("Looks at", ", ".join(card["inputs"])),
        ("Record", ", ".join(card["columns"]) or "none"),
        ("Threshold", f"{card['threshold']:.4g}"),
    ]
    for member in card["members"]:
        test = member["test"].get("metrics", {})
        auroc = test.get("auroc", {})
        facts += [
            ("Network", f"{member['model']} at {member['image_size']} pixels, {member['fusion']}"),
            ("Trained on", member["trained_on"]),
            ("First weights", member["initialisation"]),
            ("Calibration", str(member["calibration"] or "none")),
            ("AUROC in its test", _estimate(auroc)),
            ("Checkpoint (SHA-256)", member["sha256"]),
        ]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts
    )
    return f'<h2>Model card</h2><table class="facts">{rows}</table><p class="notice">{NOTICE}</p>'


def _estimate(measured: Mapping[str, Any]) -> str:
    numbers = (measured.get(name) for name in ("value", "low", "high"))
    value, *bounds = ("not known" if number is None else f"{number:.3f}" for number in numbers)
    return f"{value} ({' to '.join(bounds)})"


def _signs() -> Iterator[str]:
    for letter, name, words, image, kind in _SIGNS:
        picture = _picture(image, f"{kind} that shows {name.lower()}") if image else ""
        yield _card(picture, f"<b>{letter}</b> {name}", words)


def _cards() -> Iterator[str]:
    for image, kind, words in _OTHERS:
        yield _card(_picture(image, kind), kind, words)


def _card(picture: str, head: str, words: str) -> str:
    return f'<section class="card">{picture}<h3>{head}</h3><p>{words}</p></section>'


def _picture(name: str, words: str) -> str:
    data = (files("skinmm") / "demo" / "images" / f"{name}.jpg").read_bytes()
    return picture_html(decode(data), f"{words} ({name})")
