"""Networks by name: from timm, a folder or repository in timm's format, or open_clip."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from skinmm.config import ModelConfig
from skinmm.errors import InputError
from skinmm.models.pretrained import HUB_FILES, fetch

PIXELS: Final = ("mean", "std")
SMALLEST: Final = 16  # side of an image in pixels
OPEN_CLIP: Final = "open_clip"
OPEN_CLIP_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """Architecture of a network, and where its weights are.

    Attributes:
        name: timm's name of the architecture, or that of a network of this package.
        args: keyword arguments of its constructor that the weights need.
        settings: `mean`, `std` and `input_size` (channels, height, width) of the weights.
        location: repository on the model hub or folder; None: no weights.
        files: names of a weights file there.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    location: str | Path | None = None
    files: tuple[str, ...] = HUB_FILES


class OpenClipImage(nn.Module):
    """Image network of an open_clip model: normalised RGB -> embedding, or tokens.

    Args:
        embed_dim: width of the embedding that image and text share.
        vision_cfg: open_clip's configuration of the image network.
        quick_gelu: use OpenAI's approximation of GELU.
    """

    def __init__(
        self, embed_dim: int, vision_cfg: Mapping[str, Any], quick_gelu: bool = False
    ) -> None:
        super().__init__()
        if find_spec(OPEN_CLIP) is None:
            raise InputError("this network needs open_clip: pip install 'skinmm[open-clip]'")
        from open_clip.model import _build_vision_tower

        settings = {**vision_cfg, "timm_model_pretrained": False}
        self.visual = _build_vision_tower(embed_dim, settings, quick_gelu)
        self.num_features = embed_dim

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:  # noqa: ARG002
        """Output one vector per token instead of the embedding, as with timm's `global_pool=""`."""
        if not hasattr(self.visual, "output_tokens"):
            raise InputError("this open_clip network has no tokens: choose fusion=concat or gated")
        self.visual.output_tokens = True
        self.num_features = self.visual.transformer.width

    def forward(self, image: Tensor) -> Tensor:
        """Encode images: (batch, 3, height, width) -> (batch, *tokens, num_features)."""
        features = self.visual(image)
        return features[1] if isinstance(features, tuple) else features


def find_source(name: str, custom: Mapping[str, Any]) -> Source:
    """Return the architecture of a named network, and where its weights are.

    Args:
        name: of timm, with or without a tag; `hf-hub:ORG/NAME`; `local-dir:PATH`; or
            `open_clip:MODEL/TAG`, `open_clip:hf-hub:ORG/NAME`, `open_clip:local-dir:PATH`.
        custom: networks of this package by name.
    """
    scheme, _, rest = name.partition(":")
    if scheme == OPEN_CLIP and rest:
        return _find_open_clip(name, rest)
    if scheme in ("hf-hub", "local-dir") and rest:
        location, content = _read_json(name, name, "config.json")
        settings = content.get("pretrained_cfg") or content
        architecture = str(content.get("architecture") or settings.get("architecture"))
        _check_timm_name(architecture, name)
        return Source(architecture, dict(content.get("model_args") or {}), settings, location)
    if name in custom:
        return Source(name)
    _check_timm_name(name, name)
    import timm

    published = timm.get_pretrained_cfg(name)
    settings = asdict(published) if published else {}
    return Source(name, settings=settings, location=settings.get("hf_hub_id"))


def resolve_image_size(model: ModelConfig, custom: Mapping[str, Callable[..., Any]]) -> int:
    """Return the input size in pixels: `model.image_size`, or as the weights need if it is 0."""
    if 0 < model.image_size < SMALLEST:
        raise InputError(f"model.image_size={model.image_size}: must be 0 or at least {SMALLEST}")
    if model.image_size:
        return model.image_size
    size = find_source(model.name, custom).settings.get("input_size")
    if size is None:
        raise InputError(f"model.image_size=0: {model.name} has no size of its own; set one")
    return int(size[-1])


def _check_timm_name(name: str, given: str) -> None:
    """Raise InputError if timm lacks a network or its weights; the message has similar names."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        similar = get_close_matches(architecture.lower(), timm.list_models(), n=5, cutoff=0.4)
        choices = ", ".join(["simple_cnn", *similar])
        raise InputError(
            f"unknown model.name '{given}'; timm has no such model. Similar: {choices}"
        )
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise InputError(f"model.name={name}: no such weights; choose from {', '.join(tagged)}")


def _read_json(name: str, place: str, file: str) -> tuple[str | Path, dict[str, Any]]:
    """Return the location of `hf-hub:ORG/NAME` or `local-dir:PATH`, and its JSON file."""
    scheme, _, rest = place.partition(":")
    location = Path(rest) if scheme == "local-dir" else rest
    try:
        return location, json.loads(fetch(location, [file]).read_text(encoding="utf-8"))
    except (LookupError, ValueError) as error:
        reason = str(error).removeprefix("and ").replace("they are", f"{file} is")
        raise InputError(f"model.name={name}: its {file} cannot be read: {reason}") from error


def _find_open_clip(name: str, rest: str) -> Source:
    if find_spec(OPEN_CLIP) is None:
        raise InputError(f"model.name={name} needs open_clip: pip install 'skinmm[open-clip]'")
    import open_clip

    location: str | Path | None
    if rest.startswith(("hf-hub:", "local-dir:")):
        location, content = _read_json(name, rest, "open_clip_config.json")
        config, settings = content["model_cfg"], content.get("preprocess_cfg", {})
    else:
        model, _, tag = rest.partition("/")
        config = open_clip.get_model_config(model)
        if config is None:
            similar = get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.4)
            reason = f"open_clip has no such model. Similar: {', '.join(similar)}"
            raise InputError(f"unknown model.name '{name}'; {reason}")
        settings = open_clip.get_pretrained_cfg(model, tag)
        if not settings:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
            raise InputError(f"model.name={name}: no such weights; choose {model}/TAG, TAG: {tags}")
        location = str(settings.get("hf_hub") or "").rstrip("/") or None
    side = config["vision_cfg"].get("image_size", 224)
    args = {
        "embed_dim": config["embed_dim"],
        "vision_cfg": {**config["vision_cfg"], "image_size": side},
        "quick_gelu": bool(config.get("quick_gelu", settings.get("quick_gelu", False))),
    }
    pixels = {
        k: settings.get(k) or getattr(open_clip, f"OPENAI_DATASET_{k.upper()}") for k in PIXELS
    }
    return Source(
        OPEN_CLIP, args, {**pixels, "input_size": (3, side, side)}, location, OPEN_CLIP_FILES
    )
