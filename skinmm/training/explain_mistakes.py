"""Why a run's surest mistakes were made: pictures and numbers beside them, for its report."""

from pathlib import Path
from typing import Final

import pandas as pd
import torch
from PIL import Image

from skinmm.evaluation.predictions import Predictions, find_confident_mistakes
from skinmm.images.source import read_source
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.explain import Explainer
from skinmm.training.run_folder import write_json

SIDE: Final = 240  # pixels of a picture's longer side, as the report shows it


def explain_mistakes(
    run: Path, checkpoint: Path, predictions: Predictions, threshold: float, cohort: pd.DataFrame
) -> None:
    """Writes a heat map of each mistake that the report will show, and what each input added.

    A network that looks at no image is not explained.

    Args:
        run: its folder.
        checkpoint: its best one, with calibration.
        predictions: of the test part.
        threshold: of the decision.
        cohort: the canonical rows.
    """
    explainer = Explainer(CalibratedModel.load(checkpoint, torch.device("cpu")))
    if explainer.member.view is None:
        return
    folder, rows = run / "explanations", cohort.set_index("image_id")
    folder.mkdir(exist_ok=True)
    told = {}
    for kind, chosen in find_confident_mistakes(predictions, threshold).items():
        for place, image_id in enumerate(predictions.image_id[chosen]):
            record = rows.loc[image_id].to_dict()
            source = read_source(record["path"])
            reasons = explainer.explain(source.data, record, source.frame, record["path"])
            picture = f"{kind}_{place}.jpg"
            drawing = reasons.draw(source.data, source.frame, SIDE)
            if drawing is not None:
                Image.fromarray(drawing).save(folder / picture, quality=80)
            told[str(image_id)] = {"picture": picture, "added": reasons.contributions.added}
    write_json(folder / "mistakes.json", told)
