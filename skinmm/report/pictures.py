"""Small copies of lesion images as `data:` addresses, decoded as training decodes them."""

import base64
from pathlib import Path
from typing import Any, Final

from skinmm.errors import InputError

SIDE: Final = 240  # pixels of the longer side; twice the size on the page, for dense screens
QUALITY: Final = 80


def embedded(path: Path) -> str | None:
    """A JPEG that a run left, as a `data:` address; None where it is gone."""
    if not path.is_file():
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def thumbnail(path: Any) -> str | None:
    """The picture behind a cohort's path as a JPEG `data:` address.

    A report is read long after a run, often elsewhere: an image that is gone or broken is no
    reason to lose the page, so it gives None, as does a missing path.
    """
    import simplejpeg

    from skinmm.images.decode import decode, probe
    from skinmm.images.source import read_source

    if not isinstance(path, str) or not path:
        return None
    try:
        source = read_source(path)
        info = probe(source.data)
        scale = min(1.0, SIDE / max(info.width, info.height))
        size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
        pixels = decode(source.data, size=size, frame=source.frame)
    except (OSError, InputError):
        return None
    jpeg = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
