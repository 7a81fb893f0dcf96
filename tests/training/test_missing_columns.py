"""The curve of missing columns: against predictions of tables that lack them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, cohort_of, metrics_of, predictions_of

from skinmm.predict import Predictor
from skinmm.training.extras import removal_order

COLUMNS = ["age", "sex", "site"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["both", "records"])
def test_a_run_predicts_its_test_rows_without_columns(
    kind: str, count: int, pictures: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(kind)
    written, cohort = predictions_of(run, f"missing_{count}_of_3"), cohort_of(run)
    order = removal_order(np.arange(len(cohort)), 3)
    lacking = cohort[["image_id", *COLUMNS]].astype(object)
    lacking[COLUMNS] = lacking[COLUMNS].mask(order < count, None)
    again = Predictor.from_checkpoints([best(run)]).predict(lacking, pictures)
    assert written["image_id"].tolist() == again["image_id"].tolist()
    np.testing.assert_allclose(written["p_malignant"], again["p_malignant"], atol=2e-6)
    value = metrics_of(run)[f"missing_{count}_of_3"]["metrics"]["auroc"]["value"]
    truth, shown = (written["target"] == 1).to_numpy(), written["p_malignant"].to_numpy()
    pairs = np.subtract.outer(shown[truth], shown[~truth])
    assert value == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2), abs=1e-6)


def test_a_row_loses_every_column_equally_often_and_ever_more_of_them() -> None:
    order = removal_order(np.arange(3000), 3)
    assert (np.sort(order, axis=1) == np.arange(3)).all()
    shares = pd.DataFrame(order).apply(lambda column: (column < 1).mean())
    assert np.abs(shares - 1 / 3).max() < 0.04


def test_a_model_of_images_has_no_such_curve(larger: Path) -> None:
    assert not [name for name in metrics_of(larger) if name.startswith("missing")]
