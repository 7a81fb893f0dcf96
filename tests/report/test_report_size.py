"""A large file stays within its budget of time and memory."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_cases import Page, fitted

ROWS = 400_000
SECONDS = 60
GIGABYTES = 2

PROGRAM = """
import sys
from pathlib import Path
from skinmm.report import report_predictions
report_predictions(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_400_000_rows_in_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = fitted().sample(ROWS, replace=True, random_state=0).reset_index(drop=True)
    odds = np.log(table["p_malignant"] / table["p_benign"]) + rng.normal(0, 0.1, ROWS)
    malignant = 1 / (1 + np.exp(-odds))
    table = table.assign(
        image_id=[f"image_{row}" for row in range(ROWS)],
        patient_id=[f"patient_{row // 16}" for row in range(ROWS)],
        p_benign=1 - malignant,
        p_malignant=malignant,
    )
    table.to_csv(tmp_path / "predictions.csv", index=False)
    page = tmp_path / "page.html"
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "predictions.csv", page], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, not of the clock: what else the machine does is no fault of the report.
    assert used.ru_utime + used.ru_stime < SECONDS
    assert used.ru_maxrss < GIGABYTES * 2**20  # KiB
    assert len(Page(page).source) < 2**20
