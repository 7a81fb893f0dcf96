"""The vocabulary, and the encoder against scikit-learn's."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skinmm.data.columns import NOT_AT_BEDSIDE, check_columns, parse_extra_column
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.vocabulary import (
    CLASSES,
    MALIGNANT,
    SEXES,
    SITES,
    parse_age,
    parse_column,
    parse_diagnosis,
    parse_sex,
    parse_site,
    rename_columns,
)

HAM_SITES = {
    "back": "torso",
    "trunk": "torso",
    "abdomen": "torso",
    "chest": "torso",
    "face": "head/neck",
    "neck": "head/neck",
    "scalp": "head/neck",
    "ear": "head/neck",
    "foot": "lower extremity",
    "hand": "upper extremity",
    "genital": "oral/genital",
    "acral": "palms/soles",
    "unknown": None,
}


@pytest.mark.parametrize(("word", "site"), HAM_SITES.items())
def test_ham_localizations_become_sites(word: str, site: str | None) -> None:
    assert parse_site(word) == site


SITES_OF_COHORTS = {
    "MILK10k": {
        "head/neck": "head_neck_face",
        "lower extremity": "lower_extremity foot",
        "oral/genital": "genital",
        "torso": "trunk",
        "upper extremity": "upper_extremity hand",
    },
    "Derm7pt": {
        "head/neck": "head_neck",
        "lower extremity": "lower_limbs",
        "oral/genital": "genital_areas",
        "palms/soles": "acral",
        "torso": "abdomen back buttocks chest",
        "upper extremity": "upper_limbs",
    },
    "BCN20000 and HIBA": {
        "head/neck": "head/neck",
        "lower extremity": "lower_extremity",
        "oral/genital": "oral/genital",
        "palms/soles": "palms/soles",
        "torso": "anterior_torso posterior_torso lateral_torso",
        "upper extremity": "upper_extremity",
    },
    "PAD-UFES-20": {
        "head/neck": "NECK FACE NOSE SCALP EAR LIP",
        "lower extremity": "THIGH FOOT",
        "torso": "CHEST BACK ABDOMEN",
        "upper extremity": "ARM HAND FOREARM",
    },
    "ISIC archive": {
        "head/neck": "Head_&_Neck",
        "lower extremity": "Left_Leg Right_Leg_-_Lower toenail",
        "oral/genital": "oral_or_genital",
        "palms/soles": "acral_NOS acral_palms_or_soles",
        "torso": "Torso_Front Torso_Back_Top_Third Torso_Front_Top_Half",
        "upper extremity": "Right_Arm Left_Arm_-_Upper fingernail shoulder hands",
    },
    "DICOM PS3.16 annex L": {
        "head/neck": "HEAD HEADNECK NECK FACE SKULL EAR EYE EYELID NOSE CHEEK JAW MAXILLA ORBIT",
        "lower extremity": "LEG THIGH KNEE CALF ANKLE FOOT TOE HIP FEMUR PATELLA CALCANEUS",
        "oral/genital": "MOUTH PENIS SCROTUM VULVA VAGINA TESTIS",
        "torso": "ABDOMEN BACK BREAST BUTTOCK CHEST AXILLA CLAVICLE PELVIS RIB SCAPULA STERNUM "
        "SPINE TSPINE LSPINE COCCYX CHESTABDOMEN CHESTABDPELVIS ABDOMENPELVIS",
        "upper extremity": "ARM ELBOW FINGER HAND HUMERUS SHOULDER THUMB WRIST",
    },
}


@pytest.mark.parametrize("cohort", SITES_OF_COHORTS)
def test_the_sites_of_public_cohorts_are_known(cohort: str) -> None:
    for site, words in SITES_OF_COHORTS[cohort].items():
        for word in words.split():
            for spelling in (word, word.lower(), word.replace("_", " "), f" {word.upper()}"):
                assert parse_site(spelling) == site, spelling


@pytest.mark.parametrize("word", ["left {}", "Right {}", "bilateral {}s", "{} left", "{}s", "{}"])
def test_laterality_and_plurals_do_not_matter(word: str) -> None:
    assert parse_site(word.format("hand")) == "upper extremity"
    assert parse_site(word.format("Lower_Leg").upper()) == "lower extremity"
    assert parse_site(word.format("")) is None


@pytest.mark.parametrize(
    "word", ["EXTREMITY", "WHOLEBODY", "NECKCHEST", "NECKCHESTABDOMEN", "HEART", "SKIN", "moon"]
)
def test_what_names_no_single_site_is_unknown(word: str) -> None:
    assert parse_site(word) is None


def test_every_site_of_dicom_s_dermatology_is_known() -> None:
    """Context group 4029 of PS3.16, as pydicom has it."""
    names = {concept.meaning for concept in codes.cid4029.concepts.values()} - {"Skin", "Hair"}
    assert len(names) > 190
    assert [name for name in names if parse_site(name) is None] == []
    sure = {
        "lower extremity": r"\b(toe|foot|knee|thigh|lower leg|ankle|heel)$(?<!sole of foot)",
        "upper extremity": r"(arm|elbow|wrist|thumb|finger|of hand)$(?<!palm of hand)",
        "head/neck": r"(ear|nose|eyelid|cheek|neck|scalp|helix of ear|forehead|chin)$",
        "torso": r"(back|breast|abdomen|thorax|trunk|buttock)$",
        "oral/genital": r"(penis|scrotum|tongue|Oral mucosa|uvula|clitoris)$",
        "palms/soles": r"(sole of foot|palm of hand|forefoot|region of palm)$",
    }
    for site, pattern in sure.items():
        matching = [
            name
            for name in names
            if re.search(pattern, name) and not re.search("palmar|plant", name)
        ]
        assert {parse_site(name) for name in matching or [""]} == {site}, pattern
    glabrous = [name for name in names if re.search(r"(palmar part|plantar part) of", name)]
    assert {parse_site(name) for name in glabrous} == {"palms/soles"}


@pytest.mark.parametrize("site", SITES)
def test_a_site_is_understood_however_it_is_written(site: str) -> None:
    spaced = site.upper().replace("/", " / ").replace(" ", "_")
    assert parse_site(site) == parse_site(spaced) == site
    assert parse_site(site.replace("/", " and ")) == site


@pytest.mark.parametrize(
    ("word", "known"),
    [
        *[(name, name) for name in CLASSES],
        *[("AK", "akiec"), ("ACK", "akiec"), ("SEK", "bkl"), ("NEV", "nv"), ("UNK", "unknown")],
        *[("seborrheic keratosis", "bkl"), ("lentigo NOS", "bkl"), ("nevus", "nv")],
        *[("cafe-au-lait macule", "unknown"), ("lymphoma", None), ("", None), (None, None)],
    ],
)
def test_diagnoses(word: str | None, known: str | None) -> None:
    assert parse_diagnosis(word) == known


def test_malignant_classes_are_classes() -> None:
    assert set(MALIGNANT) < set(CLASSES)


@pytest.mark.parametrize(
    ("cell", "years"),
    [
        *[("45", 45), (45.0, 45), ("45,5", 45.5), (0, 0), ("055Y", 55), ("018M", 1.5)],
        *[(-1, None), ("-5", None), (121, None), ("old", None), ("nan", None), ("inf", None)],
        *[(None, None), (float("nan"), None), (pd.NA, None), ("", None)],
        *[("1,033", None), ("5_5", None), ("1e1", None), ("45 years", 45), ("18 months", 1.5)],
        *[("0,033", 0.033), ("55.", 55), (np.float64(7.25), 7.25), ("60+", None), ("5555Y", None)],
        *[
            ("55 M", None),
            ("55M", None),
            ("055M", 55 / 12),
            ("62w", None),
            ("55y", 55),
            ("1,033y", None),
            ("+45", 45),
            ("1,5 years", 1.5),
        ],
    ],
)
def test_ages(cell: object, years: float | None) -> None:
    assert parse_age(cell) == years


def test_sexes() -> None:
    cells = ["F", "m", "Female", " male ", "unknown", "x"]
    assert [parse_sex(cell) for cell in cells] == [
        "female",
        "male",
        "female",
        "male",
        None,
        None,
    ]
    assert [parse_sex(name) for name in SEXES] == list(SEXES)


def test_parse_column_distinguishes_missing_and_invalid() -> None:
    column, invalid = parse_column(pd.Series(["M", "unknown", None, "", "divers"]), "sex")
    assert column.tolist() == ["male", None, None, None, None]
    assert invalid.tolist() == [False, False, False, False, True]


def test_rename_prefers_the_canonical_name() -> None:
    table = pd.DataFrame(
        columns=["image_name", "age_approx", "dx", "site", "localization", "smoke"]
    )
    renamed = ["image_id", "age", "diagnosis", "site", "localization", "smoke"]
    assert list(rename_columns(table).columns) == renamed


def record(rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(5, 90, rows).astype(float),
            "sex": rng.choice(["female", "male"], rows).astype(object),
            "itch": rng.random(rows) < 0.5,
        }
    )
    table.loc[3, "age"] = np.nan
    table.loc[4, "sex"] = None
    return table


def test_encoding_equals_scikit_learn() -> None:
    table = record()
    encoder = RecordEncoder.fit(table, ["age", "sex"])
    encoded = encoder.transform(table)
    known = table["age"].notna()
    scaled = StandardScaler().fit_transform(table.loc[known, ["age"]].to_numpy())
    np.testing.assert_allclose(encoded[known, 0], scaled[:, 0], rtol=1e-5, atol=1e-6)
    hot = OneHotEncoder(categories=[["female", "male"]], handle_unknown="ignore")
    expected = hot.fit_transform(table.loc[table["sex"].notna(), ["sex"]].to_numpy()).toarray()
    np.testing.assert_array_equal(encoded[table["sex"].notna(), 2:4], expected)


def test_missing_and_unseen_values_have_a_slot_of_their_own() -> None:
    encoder = RecordEncoder.fit(record(), ["age", "sex"])
    rows = pd.DataFrame({"age": [np.nan, "old"], "sex": [None, "divers"]})
    np.testing.assert_array_equal(encoder.transform(rows), [[0, 1, 0, 0, 1]] * 2)


def test_unknown_is_what_training_has_not_shown_but_not_what_is_missing() -> None:
    encoder = RecordEncoder.fit(record(), ["age", "sex"])
    cells = np.array([5, "4,5", "old", None, "k.A.", np.nan], object)
    assert encoder.unknown("age", cells).tolist() == [False, False, True, False, True, False]
    assert encoder.transform({"age": cells, "sex": cells})[1, 0] != 0
    words = np.array(["male", "divers", "", None], object)
    assert encoder.unknown("sex", words).tolist() == [False, True, False, False]


def test_a_number_is_read_with_the_unit_of_training_or_none() -> None:
    table = pd.DataFrame({"size": [3.0, 5.0, 10.0], "age": [1.0, 2.0, 3.0]})
    encoder = RecordEncoder.fit(table, ["size", "age"], {"size": "mm"})
    encoder = RecordEncoder.from_state(json.loads(json.dumps(encoder.to_state())))
    cells = np.array(["5 mm", "5", 5, "5,0 Millimeters", "0.5 cm", "1,033 mm", "5 px"], object)
    encoded = encoder.transform({"size": cells, "age": cells})
    assert (encoded[:4] == encoded[1, :]).all(axis=0)[:2].all()
    assert encoder.refuse("size", cells) == {
        4: "column 'size': '0.5 cm', but the numbers of training are in mm",
        5: "column 'size': '1,033 mm' can mean 1033 or 1.033; write numbers without thousands "
        "separators",
    }
    bare = RecordEncoder.fit(table, ["size"]).refuse("size", cells)
    assert bare[0] == "column 'size': '5 mm', but the numbers of training are without a unit"
    assert [*bare] == [0, 3, 4, 5]
    assert encoder.unknown("size", cells[[0, 3, 6]]).tolist() == [False, False, True]
    assert encoder.units == {"size": "mm"}
    assert encoder.read_numbers({"size": "1,5 mm", "age": "old", "sex": "f"}) == {"size": 1.5}


def test_a_column_of_0_and_1_reads_true_and_false() -> None:
    encoder = RecordEncoder.fit(
        pd.DataFrame({"itch": [0.0, 1.0, 1.0], "n": [0, 1, 2]}), ["itch", "n"]
    )
    cells = np.array(["TRUE", "yes", 1, True, "1.0", "no", False, "0", "maybe"], object)
    encoded = encoder.transform({"itch": cells, "n": cells})[:, 0]
    assert len({*encoded[:5]}) == len({*encoded[5:8]}) == 1
    assert encoded[0] > encoded[5]
    assert encoder.unknown("itch", cells).tolist() == [False] * 8 + [True]
    assert encoder.unknown("n", cells[:2]).tolist() == [True, True]


def test_encoders_of_older_checkpoints_load() -> None:
    state = {"name": "size", "kind": "numeric", "mean": 2.0, "scale": 1.0, "values": []}
    encoder = RecordEncoder.from_state({"columns": [state]})
    assert encoder.transform({"size": np.array(["3"], object)})[0].tolist() == [1.0, 0.0]


def test_layout_covers_the_vector_once() -> None:
    encoder = RecordEncoder.fit(record(), ["itch", "age", "sex"])
    assert [(c.name, c.kind) for c in encoder.layout] == [
        ("itch", "categorical"),
        ("age", "numeric"),
        ("sex", "categorical"),
    ]
    covered = [place for column in encoder.layout for place in range(column.start, column.stop)]
    assert covered == list(range(encoder.dim)) == list(range(8))


def test_state_survives_json() -> None:
    table = record()
    encoder = RecordEncoder.fit(table, ["age", "sex", "itch"])
    again = RecordEncoder.from_state(json.loads(json.dumps(encoder.to_state())))
    assert again.layout == encoder.layout
    assert again.columns == ("age", "sex", "itch")
    np.testing.assert_array_equal(again.transform(table), encoder.transform(table))


def test_a_column_without_a_known_value_encodes() -> None:
    table = pd.DataFrame({"age": [np.nan, np.nan], "sex": [None, None]}).astype({"sex": object})
    encoded = RecordEncoder.fit(table, ["age", "sex"]).transform(table)
    np.testing.assert_array_equal(encoded, [[0, 1, 1]] * 2)


@given(
    st.lists(
        st.tuples(st.none() | st.floats(-10, 200), st.sampled_from(["a", "b", None])), min_size=1
    )
)
def test_rows_are_encoded_independently(cells: list[tuple[float | None, str | None]]) -> None:
    encoder = RecordEncoder.fit(record(), ["age", "sex"])
    table = pd.DataFrame(cells, columns=["age", "sex"], dtype=object)
    encoded = encoder.transform(table)
    single = np.concatenate([encoder.transform(table.iloc[[row]]) for row in range(len(table))])
    np.testing.assert_array_equal(encoded, single)
    np.testing.assert_array_equal(encoded[:, 2:].sum(axis=1), 1)


@pytest.mark.parametrize("name", NOT_AT_BEDSIDE)
def test_what_does_not_exist_at_the_bedside_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' cannot be an input: it "):
        check_columns(["age", name], ["age", name])


def test_histology_is_refused() -> None:
    with pytest.raises(InputError, match=r"'iddx_3' cannot be an input: .*histology"):
        check_columns(["iddx_3"], ["iddx_3"])


def test_an_unknown_column_lists_the_usable_ones() -> None:
    with pytest.raises(
        InputError, match=r"no column 'agee'; did you mean 'age'\? the table has age, sex$"
    ):
        RecordEncoder.fit(record()[["sex", "age"]].assign(width=1), ["agee"])


def test_transform_names_the_column_that_is_not_there() -> None:
    encoder = RecordEncoder.fit(record(), ["age", "sex"])
    with pytest.raises(InputError, match="no column 'sex'"):
        encoder.transform(record()[["age"]])


def test_an_encoded_row_is_decoded_to_what_the_network_knows_of_it() -> None:
    table = pd.DataFrame({"age": [40.0, 60.0, np.nan], "site": ["torso", None, "head/neck"]})
    encoder = RecordEncoder.fit(table, ["age", "site"])
    decoded = [encoder.decode(row) for row in encoder.transform(table)]
    assert decoded == [
        {"age": "40", "site": "torso"},
        {"age": "60", "site": "missing"},
        {"age": "missing", "site": "head/neck"},
    ]
    unseen = encoder.transform({"age": np.array(["x"], object), "site": np.array(["moon"], object)})
    assert encoder.decode(unseen[0]) == {"age": "missing", "site": "missing"}


def test_a_point_before_three_digits_is_ambiguous_beside_decimal_commas() -> None:
    with pytest.raises(InputError, match=r"'1\.200' can mean 1200 or 1\.200"):
        parse_extra_column(pd.Series(["12,5", "1.200", "0,8"], name="area"))
    assert parse_extra_column(pd.Series(["12.5", "1.200"], name="area")).tolist() == [12.5, 1.2]
