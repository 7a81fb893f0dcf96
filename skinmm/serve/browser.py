"""`skinmm export target=browser`: a static folder that runs a checkpoint in a web browser.

The networks are the files of `skinmm export`, which calibrate and compute the out-of-distribution
score; `model.json` has the rest of a decision. The JavaScript in `templates/browser` decodes and
resizes JPEG and PNG bit by bit as `skinmm.images` does.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from skinmm import __version__
from skinmm.config.checkpoints import announce_included, find_checkpoint
from skinmm.config.commands import ExportConfig
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.predictions import BINARY
from skinmm.predict.backends import PRECISION
from skinmm.predict.cases import NOTICE, build_card
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.export_onnx import write_model
from skinmm.predict.pipeline import require_single_rows
from skinmm.predict.predictor import MIN_VOTES, Predictor
from skinmm.serve.rendering import (
    Texts,
    list_groups,
    load_texts,
    read_prevalence,
    read_test,
    render,
)
from skinmm.vocabulary import MAX_AGE, SEXES, SITES

ENGINE: Final = "onnxruntime-web"
VERSION: Final = "1.30.0"
"""Version of the engine that the tests ran with; another one is refused."""
ENGINE_FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
MAX_PIXELS: Final = 50_000_000
"""Phones have no memory for more."""
_STATIC: Final = ("app.js", "model.js", "image.js", "jpeg.js", "png.js", "browser.css", "icon.svg")
_MODULES: Final = (*_STATIC[1:5], "texts.js", ENGINE_FILES[0])
_TEMPLATES: Final = Path(__file__).with_name("templates")
_CHOICES: Final = {"sex": SEXES, "site": SITES}


def export_browser(config: ExportConfig) -> Path:
    """Write the folder and return it; `index.html` is its page."""
    if config.out is not None:
        raise InputError("out=FILE belongs to target=onnx; target=browser writes output=DIR")
    folder, texts = Path(config.output or "browser"), load_texts(config.texts)
    require_new_output("output", folder, overwrite=config.overwrite)
    runtime = find_runtime(config.runtime)
    checkpoint = find_checkpoint(Path(config.checkpoint))
    announce_included([checkpoint])
    models = load_models(checkpoint, torch.device("cpu"), "torch", uncalibrated=config.uncalibrated)
    for model in models:
        require_supported(model, checkpoint)
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".browser-", dir=parent) as name:
        partial = Path(name)
        _write_folder(models, partial, runtime, config, texts)
        folder.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir(), key=lambda path: path.name == "index.html"):
            file.replace(folder / file.name)
    return folder


def find_runtime(folder: str | None) -> Path:
    """Return the folder with the files of the engine, after a check of its version."""
    advice = f"npm install {ENGINE}@{VERSION}, or runtime=FOLDER with its package.json"
    root = Path(folder) if folder else Path("node_modules", ENGINE)
    packages = (root / "package.json", root.parent / "package.json")
    package = next(filter(Path.is_file, packages), None)
    if package is None:
        raise InputError(f"runtime={root}: no {ENGINE} there; {advice}")
    facts = json.loads(package.read_text(encoding="utf-8"))
    if (facts.get("name"), facts.get("version")) != (ENGINE, VERSION):
        raise InputError(
            f"runtime={root}: {facts.get('name')} {facts.get('version')}, but this version of "
            f"skinmm was tested with {ENGINE} {VERSION}: {advice}"
        )
    dist = root / "dist" if (root / "dist").is_dir() else root
    missing = [name for name in ENGINE_FILES if not (dist / name).is_file()]
    if missing:
        raise InputError(f"runtime={root}: {', '.join(missing)} is missing; {advice}")
    return dist


def require_supported(model: CalibratedModel, checkpoint: Path) -> None:
    """Raise InputError if the page cannot prepare the images or records of a model."""
    require_single_rows([model], "skinmm export")
    view = model.view
    reasons = {
        "a segmenter finds its lesions": model.finder is not None,
        f"data.preprocess={model.card.preprocess}": bool(view and view.steps),
        f"data.icc={view.icc}" if view else "": bool(view and view.icc != "ignore"),
    }
    if reason := next((text for text, applies in reasons.items() if applies), None):
        raise InputError(
            f"{checkpoint} cannot run in a browser: {reason}; use skinmm serve, or train without it"
        )


def _write_folder(
    models: Sequence[CalibratedModel],
    folder: Path,
    runtime: Path,
    config: ExportConfig,
    texts: Texts,
) -> None:
    for name in ENGINE_FILES:
        (folder / name).write_bytes((runtime / name).read_bytes())
    for name in _STATIC:
        (folder / name).write_bytes((_TEMPLATES / "browser" / name).read_bytes())
    words = {**texts["result"], **texts["reliability"], **texts["messages"], **texts["browser"]}
    values = {"words": words, "names": texts["choices"], "title": texts["title"]}
    for name in ("texts.js", "manifest.webmanifest"):
        (folder / name).write_text(render(f"browser/{name}", **values), encoding="utf-8")
    (folder / "page.css").write_bytes((_TEMPLATES / "page.css").read_bytes())
    names = [f"model.{number}.onnx" for number in range(len(models))]
    precisions = [
        write_model(model, folder / name, config) for model, name in zip(models, names, strict=True)
    ]
    predictor = Predictor(models)
    card = build_card(predictor, models)
    integrity = {path.name: digest(path) for path in sorted(folder.iterdir())}
    facts = describe(predictor, card) | {
        "members": [
            {
                "file": name,
                "integrity": integrity[name],
                PRECISION: precision,
                **describe_member(model),
            }
            for name, model, precision in zip(names, models, precisions, strict=True)
        ],
        "runtime": {"name": ENGINE, "version": VERSION, "integrity": integrity[ENGINE_FILES[1]]},
    }
    _write(folder / "model.json", json.dumps(facts), integrity)
    page = render(
        "browser/index.html",
        texts,
        policy=POLICY,
        modules=_MODULES,
        integrity=integrity,
        facts=facts,
        card=card,
        test=read_test(card),
        groups=list_groups(card),
        prevalence=read_prevalence(card),
    )
    _write(folder / "index.html", page, integrity)
    version = hashlib.sha256(json.dumps(integrity, sort_keys=True).encode()).hexdigest()[:16]
    worker = render("browser/sw.js", version=version, files=integrity)
    (folder / "sw.js").write_text(worker, encoding="utf-8")


def _write(path: Path, text: str, integrity: dict[str, str]) -> None:
    path.write_text(text, encoding="utf-8")
    integrity[path.name] = digest(path)


def digest(path: Path) -> str:
    """Return the value of an `integrity` attribute: SHA-384 in Base64."""
    return f"sha384-{base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()}"


def describe(predictor: Predictor, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the page needs for its form and for decisions."""
    rule = predictor.call.score(np.eye(len(predictor.classes)))  # it is linear
    calibrations = [member["calibration"] for member in card["members"]]
    sets = card["members"][0]["prediction_sets"]
    return {
        "made_by": f"skinmm {__version__}",
        "notice": NOTICE,
        "classes": predictor.classes,
        "positive": predictor.positive,
        "threshold": predictor.threshold,
        "band": card["band"],
        "min_votes": MIN_VOTES,
        "call": None if tuple(predictor.classes) == BINARY else rule.tolist(),
        "has_calibration": any(calibrations),
        "is_calibrated": all(calibrations),
        "coverage": sets and sets["coverage"],
        "groups": [
            {key: group[key] for key in ("last", "low", "high")} for group in list_groups(card)
        ],
        "has_image": "image" in predictor.inputs,
        "needs_image": predictor.needs_image,
        "max_pixels": MAX_PIXELS,
        "columns": [describe_field(predictor, name) for name in predictor.columns],
    }


def describe_field(predictor: Predictor, name: str) -> dict[str, Any]:
    """Return kind and allowed values of a field of the form, and its label unless texts have it."""
    if name == "age":
        return {"name": name, "label": "", "kind": "number", "low": 0, "high": MAX_AGE}
    if name in _CHOICES:
        choices = [*_CHOICES[name]]
        return {"name": name, "label": "", "kind": "choice", "choices": choices}
    states = [
        state
        for member in predictor.ensemble.members
        for state in member.card.encoder["columns"]
        if state["name"] == name
    ]
    kinds = {state["kind"] for state in states}
    if len(kinds) > 1:
        raise InputError(f"column '{name}' has numbers for one network and words for another")
    if kinds == {"numeric"} and not states[0].get("is_truth"):
        label = ", ".join(filter(None, (name, states[0].get("unit"))))
        return {"name": name, "label": label, "kind": "number"}
    values = {value for state in states for value in state["values"]}
    choices = ["0", "1"] if kinds == {"numeric"} else sorted(values)
    return {"name": name, "label": name, "kind": "choice", "choices": choices}


def describe_member(model: CalibratedModel) -> dict[str, Any]:
    """Return the inputs and outputs of one network for the page."""
    conformal = model.card.conformal
    return {
        "image_size": model.view.size if model.view else None,
        "record": model.card.encoder["columns"] if "record" in model.inputs else None,
        "limits": conformal and [*conformal["limits"].values()],
        "checkpoint": model.digest,
    }
