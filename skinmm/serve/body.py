"""A body to point at: the sites of a record as buttons of a drawing, in front and from behind."""

from html import escape
from typing import Final

# The shapes of each site, in a box of 120 by 250. A body that stands upright with its palms to the
# front shows these in front and the soles, if it lifts its heels, from behind.
_HEAD: Final = '<circle cx="60" cy="24" r="21"/><path d="M52 44h16v12h-16z"/>'
_TORSO: Final = '<path d="M34 58h52l-5 46v26h-42v-26z"/>'
_ARMS: Final = '<path d="M31 59l-13 62h11l9-46z"/><path d="M89 59l13 62h-11l-9-46z"/>'
_LEGS: Final = '<path d="M39 133h20l-3 88h-14z"/><path d="M81 133h-20l3 88h14z"/>'
_HANDS: Final = '<circle cx="21" cy="134" r="12"/><circle cx="99" cy="134" r="12"/>'
_FEET: Final = (
    '<ellipse cx="46" cy="234" rx="13" ry="12"/><ellipse cx="74" cy="234" rx="13" ry="12"/>'
)
_INNER: Final = (
    '<ellipse cx="60" cy="34" rx="10" ry="7"/><ellipse cx="60" cy="128" rx="12" ry="9"/>'
)
_SIDES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "front": (
        ("head/neck", _HEAD),
        ("torso", _TORSO),
        ("upper extremity", _ARMS),
        ("palms/soles", _HANDS),
        ("lower extremity", _LEGS + _FEET),
        ("oral/genital", _INNER),
    ),
    "back": (
        ("head/neck", _HEAD),
        ("torso", _TORSO),
        ("upper extremity", _ARMS + _HANDS),
        ("lower extremity", _LEGS),
        ("palms/soles", _FEET),
    ),
}
JAVASCRIPT: Final = """
const mark = () => element.querySelectorAll('[data-site]').forEach((part) =>
  part.setAttribute('aria-pressed', String(part.dataset.site === props.value)));
const pick = (event) => {
  const part = event.target.closest('[data-site]');
  if (!part || (event.type === 'keydown' && !['Enter', ' '].includes(event.key))) return;
  event.preventDefault();
  props.value = part.dataset.site;
  trigger('input');
  mark();
};
element.addEventListener('click', pick);
element.addEventListener('keydown', pick);
watch('value', mark);
"""
"""Tells the page which site was chosen, and marks the one that the page says is."""


def body_html() -> str:
    """Both sides; each site is a button that keyboard and screen reader reach."""
    sides = "".join(_side(side, parts) for side, parts in _SIDES.items())
    words = '<p class="small">Choose the site in the list, or point at it here.</p>'
    return f'{words}<div class="body" role="group" aria-label="Site on a body">{sides}</div>'


def _side(side: str, parts: tuple[tuple[str, str], ...]) -> str:
    drawn = "".join(
        f'<g role="button" tabindex="0" aria-pressed="false" data-site="{escape(site)}" '
        f'aria-label="{escape(site)}, {side}"><title>{escape(site)}</title>{shapes}</g>'
        for site, shapes in parts
    )
    return (
        f'<figure><svg viewBox="0 0 120 250" role="group" aria-label="{side}">{drawn}</svg>'
        f"<figcaption>{side.capitalize()}</figcaption></figure>"
    )
