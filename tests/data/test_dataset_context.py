"""Whom a lesion is compared with: others of its patient, the same wherever their rows stand."""

from random import Random

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st

from skinmm.data.dataset_context import ContextDataset, Embedded, order_keys, others_of
from skinmm.data.vocabulary import named_patients

Patients = list[str | None]


def chosen(patients: Patients, names: list[str], most: int) -> dict[str, list[str]]:
    """Of every row, by its name, the names of its others."""
    found = others_of(patients, order_keys(names, None), most)
    return {
        name: [names[place] for place in places if place >= 0]
        for name, places in zip(names, found, strict=True)
    }


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=30),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_others_are_the_patient_s_and_do_not_hang_on_the_order(
    patients: Patients, most: int, random: Random
) -> None:
    names = [f"image {number}" for number in range(len(patients))]
    found = chosen(patients, names, most)
    whose = dict(zip(names, patients, strict=True))
    for name, others in found.items():
        own = [each for each in names if whose[each] == whose[name] and each != name]
        assert len(others) == len(set(others)) == (min(len(own), most) if whose[name] else 0)
        assert set(others) <= set(own)
    order = list(range(len(names)))
    random.shuffle(order)
    again = chosen([patients[i] for i in order], [names[i] for i in order], most)
    assert again == found


def test_a_row_is_known_by_its_name_in_a_clinic_s_table_too() -> None:
    records = np.ones((2, 3), np.float32)
    keys = order_keys(["ISIC_1", "ISIC_2"], records)
    assert (order_keys(["ISIC_1.jpg", "far/away/ISIC_2.DCM"], records) == keys).all()
    assert (order_keys(["ISIC_1", "ISIC_2"], 2 * records) != keys).all()


def test_what_stands_in_for_a_patient_is_nobody() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["i1", "i2", "i3", "i4"],
            "lesion_id": [None, "l2", None, "l4"],
            "patient_id": ["p", "l2", "i3", None],
        }
    )
    assert named_patients(table) == ["p", None, None, None]


def test_a_sample_holds_a_row_and_the_others_with_zeros_where_there_are_none() -> None:
    features = np.arange(8, dtype=np.float32).reshape(4, 2) + 1
    others = np.array([[2, -1], [-1, -1], [0, -1], [-1, -1]])
    embedded = Embedded(-features, features, others)
    assert embedded.alone.tolist() == [False, True, False, True]
    data = ContextDataset(np.array([1, 0]), embedded, np.array([2, 3]))
    first, last = data[0, 7], data[1, None]
    assert (first["row"], first["target"], len(data)) == (0, 1, 2)
    assert first["there"].tolist() == [True, False]
    assert first["others"].tolist() == [[1, 2], [0, 0]]
    torch.testing.assert_close(first["own"], -first["plain"])
    assert not last["there"].any()
    assert not last["others"].any()


def test_a_row_that_is_listed_twice_is_no_neighbour_of_itself() -> None:
    keys = np.array([5, 5, 7, 7, 9])
    found = others_of(["P", "P", "P", "Q", "Q"], keys, 2)
    assert found[:2].tolist() == [[2, -1], [2, -1]]
    assert found[2].tolist() == [0, -1]
    assert found[3:].tolist() == [[4, -1], [3, -1]]
