"""A row per patient: the worst decision of all lesions, however many there are."""

import pandas as pd
import pytest

from skinmm.predict.extra_outputs import MAX_LESIONS, summarize_patients


def rows(decisions: list[tuple[float, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"I{number}" for number in range(len(decisions))],
            "patient_id": "P",
            "malignancy": [f"{chance:.3f}" for chance, _ in decisions],
            "decision": [decision for _, decision in decisions],
            "threshold": "0.5",
            "error": "",
            "prediction_set": "benign|malignant",
            "ood": "0.5",
            "missing": "",
        }
    )


@pytest.mark.parametrize(
    ("many", "one", "decided"),
    [
        ((0.3, "benign"), (0.001, "refer"), "refer"),
        ((0.9, "refer"), (0.85, "malignant"), "malignant"),
    ],
)
def test_a_decision_counts_however_low_its_risk(
    many: tuple[float, str], one: tuple[float, str], decided: str
) -> None:
    (table,) = summarize_patients([rows([many] * (MAX_LESIONS + 5)), rows([one])])
    (patient,) = table.to_dict("records")
    assert patient["decision"] == decided
    assert patient["images"] == MAX_LESIONS + 6
    assert patient["malignancy"] == many[0]
    assert len(patient["lesions"].split("|")) == MAX_LESIONS
    reasons = {
        "refer": "I0: malignancy 0.001, neither decision is safe",
        "malignant": "I0: malignancy 0.85 reaches 0.5",
    }
    assert patient["reasons"] == reasons[decided]
