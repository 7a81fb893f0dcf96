"""Publish the network of a run on the Hugging Face Hub, with a card that states its licence."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config.checkpoints import HUB_FILE, HUB_PREFIX, find_checkpoint
from skinmm.config.outputs import PushConfig
from skinmm.errors import InputError, one_line, print_line
from skinmm.models.checkpoint import Card, load_card, save_compact

LICENCES: Final = {"CC-0": "cc0-1.0", "CC-BY": "cc-by-4.0", "CC-BY-NC": "cc-by-nc-4.0"}
"""Licences of images, the freest first, and the Hub's names for them."""
OF_DATASET: Final = {
    "demo": "CC-0",
    "isic_2017": "CC-0",
    "pad_ufes_20": "CC-BY",
    "ham10000": "CC-BY-NC",
    "siim_isic": "CC-BY-NC",
}
"""Licence of the images of datasets whose tables state none for each image."""

FOLDERS: Final = re.compile(r"(?<![\w.:/<])/(?:[^\s/'\",\]]+/)+")
"""Folders of an absolute path in a text; addresses such as https://HOST/PAGE have none."""


def push(config: PushConfig) -> int:
    """Upload weights, configuration and card of a run to a repository of the Hub."""
    from huggingface_hub import HfApi

    run = Path(config.input)
    if not all((run / name).is_file() for name in ("card.md", "cohort.csv")):
        raise InputError(f"{run}: not a finished run (no card.md and cohort.csv)")
    checkpoint = find_checkpoint(run)
    card, _ = load_card(checkpoint)
    cohort = pd.read_csv(run / "cohort.csv", dtype=str)
    licence = choose_licence(cohort, str(card.config["data"]["name"]), config.licence)
    changes = hide_local(card)
    if not config.background:
        changes["background"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_compact(checkpoint, folder / HUB_FILE, halve=False, **changes)
        text = FOLDERS.sub("", (run / "card.md").read_text(encoding="utf-8"))
        readme = f"---\n{describe(card, config.hub, licence)}\n---\n\n{text}"
        (folder / "README.md").write_text(f"{readme}\n{USE.format(hub=config.hub)}", "utf-8")
        try:
            hub = HfApi()
            hub.create_repo(config.hub, private=config.private, exist_ok=True)
            commit = hub.upload_folder(repo_id=config.hub, folder_path=folder)
        except Exception as error:  # the Hub's own errors and those of its HTTP client
            raise InputError(f"hub={config.hub}: the upload failed: {one_line(error)}") from error
    print_line(f"pushed: {commit.commit_url}\nlicence: {licence}")
    print_line(f"to use it: checkpoint={HUB_PREFIX}{config.hub}@{commit.oid}")
    return 0


def choose_licence(cohort: pd.DataFrame, dataset: str, stated: str | None) -> str:
    """Return the Hub's name of the licence: `stated`, or the strictest of the images of a run.

    Args:
        cohort: rows of the run; `licence` lists the licences of a row's images, separated by `|`.
        dataset: name of the dataset, whose licence counts where rows state none.
        stated: licence that the user names.

    Raises:
        InputError: the images have a stricter licence, or one of unknown terms and none is stated.
    """
    of_dataset = OF_DATASET.get(dataset, "")
    if "licence" in cohort:
        names = cohort["licence"].fillna("").str.split("|", regex=False).explode()
        licences = {str(name) or of_dataset for name in names}
    else:
        licences = {of_dataset}
    order, hub_names = list(LICENCES), list(LICENCES.values())
    if unknown := sorted(licences - {*order}):
        if stated is None:
            terms = ", ".join(name or "none stated" for name in unknown)
            raise InputError(
                f"licence: images with {terms}; read their terms and name the licence of the "
                "weights, e.g. licence=cc-by-nc-4.0"
            )
        licences &= {*order}
    rank = max((order.index(name) for name in licences), default=0)
    is_free = order[rank] == "CC-BY-NC" and stated is not None and "-nc" not in stated
    if is_free or (stated in hub_names and hub_names.index(str(stated)) < rank):
        raise InputError(
            f"licence={stated}: the run has images with {order[rank]}; choose "
            f"{hub_names[rank]} or a stricter one"
        )
    return stated or hub_names[rank]


def hide_local(card: Card) -> dict[str, Any]:
    """Return the attributes of a card without folders and names of training images."""
    names = ("config", "initialisation", "adaptation", "parts", "segmenter")
    return {name: hide_folders(getattr(card, name)) for name in names} | {"index": None}


def hide_folders(value: Any) -> Any:
    """Return plain data in which every absolute path is reduced to its file name."""
    if isinstance(value, Mapping):
        return {key: hide_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def describe(card: Card, hub: str, licence: str) -> str:
    """Return the metadata of a card, with test figures, as YAML in the fields of the Hub."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = str(card.config["data"]["name"])
    figures = {
        name: entry["value"] if isinstance(entry, Mapping) else entry
        for name, entry in card.summary.get("metrics", {}).items()
    }
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=f"{dataset} (test split)",
            metric_type=metric,
            metric_name=name,
            metric_value=round(float(figures[name]), 4),
        )
        for name, metric in (("auroc", "roc_auc"), ("brier", "brier_score"))
        if figures.get(name) is not None
    ]
    data = ModelCardData(
        model_name=hub.rpartition("/")[2],
        license=licence,
        library_name="skinmm",
        pipeline_tag="image-classification",
        tags=["dermatology", "dermoscopy", "skin-lesion", *card.classes],
        eval_results=results or None,
    )
    return data.to_yaml()


USE: Final = """
## Use

```
pip install skinmm
skinmm predict checkpoint=hf://{hub} input=patients.csv images=DIR
```
"""
