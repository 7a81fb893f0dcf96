"""Every public dataset in miniature, as its zip files unpack: a few rows and pictures of 16x16."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from tfrecord import TFRecordWriter

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.cohorts.tables import CohortTable


def picture(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGB", (16, 16), (shade, 0, 0))
    image.paste((shade, 120, 120), (4, 4, 12, 12))
    image.save(stream, "JPEG")
    return stream.getvalue()


def write(root: Path, table: str, text: str) -> None:
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text(text)


def write_images(folder: Path, names: list[str], suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        (folder / f"{name}{suffix}").write_bytes(picture(shade))


def hot(classes: str, *names: str) -> str:
    columns = classes.split(",")
    rows = [
        f"I{n}," + ",".join("1.0" if name == column else "0.0" for column in columns)
        for n, name in enumerate(names)
    ]
    return "\n".join([f"image,{classes}", *rows])


def siim_isic(root: Path) -> None:
    header = (
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
        "benign_malignant,target\n"
    )
    rows = [
        "I0,P0,male,45.0,head/neck,unknown,benign,0",
        "I1,P0,male,45.0,torso,melanoma,malignant,1",
        "I2,P1,female,,,nevus,benign,0",
        "I3,P2,,50.0,lower extremity,lentigo NOS,benign,0",
    ]
    write(root, "train.csv", header + "\n".join(rows))
    write(root, "train_with_images.csv", header + rows[0])
    write(root, "ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2\nI0,I2\n")
    lesions = "image_name,patient_id,lesion_id\nI0,P0,L0\nI3,P2,L3\n"
    write(root, "ISIC_2020_Training_GroundTruth_v2.csv", lesions)
    sizes = "image_name,tfrecord,width,height\nI0,0,6000,4000\nI1,0,6000,4000\nI2,-1,1872,1053\n"
    write(root, "image_size.csv", sizes + "I3,4,640,480\n")
    write_images(root / "jpeg" / "train", ["I0", "I1", "I2", "I3"])


def ham10000(root: Path) -> None:
    write(
        root,
        "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
        "H0,I0,bkl,histo,80.0,male,scalp\nH0,I1,bkl,histo,80.0,male,scalp\n"
        "H1,I2,mel,histo,,unknown,unknown\nH2,I3,akiec,histo,0.0,female,foot\n",
    )
    write_images(root / "HAM10000_images_part_1", ["I0", "I1"])
    write_images(root / "HAM10000_images_part_2", ["I2", "I3"])


def isic_2017(root: Path) -> None:
    part = "ISIC-2017_{}_Part3_GroundTruth.csv"
    header = "image_id,melanoma,seborrheic_keratosis\n"
    write(root, part.format("Training"), header + "I0,1.0,0.0\nI1,0.0,1.0\nI2,0.0,0.0\n")
    write(root, part.format("Test_v2"), header + "I3,1.0,0.0\n")
    metadata = "image_id,age_approximate,sex\nI0,55,female\nI1,unknown,unknown\n"
    write(root, "ISIC-2017_Training_Data_metadata.csv", metadata)
    write_images(root / "ISIC-2017_Training_Data", ["I0", "I1", "I2"])
    write_images(root / "ISIC-2017_Training_Data", ["I0_superpixels"], ".png")
    write_images(root / "ISIC-2017_Test_v2_Data", ["I3"])


def isic_2018(root: Path) -> None:
    classes = "MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    name = "ISIC2018_Task3_Training_GroundTruth"
    write(root, f"{name}/{name}.csv", hot(classes, "MEL", "NV", "AKIEC", "VASC"))
    groups = "image,lesion_id,diagnosis_confirm_type\nI0,H0,histo\nI1,H0,histo\n"
    write(root, "ISIC2018_Task3_Training_LesionGroupings.csv", groups)
    write_images(root / "ISIC2018_Task3_Training_Input", ["I0", "I1", "I2", "I3"])


def isic_2019(root: Path) -> None:
    classes = "MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    truth = hot(classes, *classes.split(",")).replace("I", "J").replace("J1,", "J0_downsampled,")
    write(root, "ISIC_2019_Training_GroundTruth.csv", truth)
    metadata = (
        "image,age_approx,anatom_site_general,lesion_id,sex\nJ0,55.0,anterior torso,,female\n"
    )
    write(root, "ISIC_2019_Training_Metadata.csv", metadata + "J2,30.0,palms/soles,BCN_1,male\n")
    names = ["J0", "J0_downsampled", *[f"J{n}" for n in range(2, 9)]]
    write_images(root / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input", names)


def isic_2024(root: Path) -> None:
    write(
        root,
        "train-metadata.csv",
        "isic_id,target,patient_id,age_approx,sex,anatom_site_general,clin_size_long_diam_mm,"
        "iddx_full,mel_thick_mm\n"
        "I0,0,P0,60.0,male,lower extremity,3.04,Benign,\n"
        "I1,1,P1,45.0,female,head/neck,1.10,Malignant::Malignant melanocytic proliferations "
        "(Melanoma)::Melanoma Invasive,0.5\n"
        "I2,1,P2,65.0,,posterior torso,3.40,Malignant::Malignant adnexal epithelial proliferations"
        "::Basal cell carcinoma,\n",
    )
    with h5py.File(root / "train-image.hdf5", "w") as file:
        for shade in range(3):
            file.create_dataset(f"I{shade}", data=np.void(picture(shade)))


def pad_ufes_20(root: Path) -> None:
    write(
        root,
        "metadata.csv",
        "patient_id,lesion_id,smoke,age,fitspatrick,gender,region,diameter_1,diagnostic,itch,"
        "img_id,biopsed\n"
        "PAT_1516,1765,,8,,,ARM,,NEV,FALSE,I0.png,FALSE\n"
        "PAT_46,881,FALSE,55,3.0,FEMALE,NECK,6.0,BCC,TRUE,I1.png,TRUE\n"
        "PAT_46,882,FALSE,55,3.0,FEMALE,LIP,5.0,ACK,UNK,I2.png,FALSE\n",
    )
    write_images(root / "images" / "imgs_part_1", ["I0", "I1"], ".png")
    write_images(root / "images" / "imgs_part_3", ["I2"], ".png")


MILK_CLASSES: Final = "AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"


def milk10k(root: Path) -> None:
    header = "lesion_id,image_type,isic_id,attribution,copyright_license,age_approx,sex,"
    rows = [
        f"IL_{n},{kind},ISIC_{2 * n + k},MILK study team,CC-BY-NC,70,male,3,head_neck_face,0.{n}{k}"
        for n in range(3)
        for k, kind in enumerate(("clinical: close-up", "dermoscopic"))
    ]
    table = [f"{header}skin_tone_class,site,MONET_hair", *rows]
    write(root, "MILK10k_Training_Metadata.csv", "\n".join(table))
    truth = hot(MILK_CLASSES, "BCC", "INF", "SCCKA").replace("\nI", "\nIL_")
    truth = truth.replace("image,", "lesion_id,")
    write(root, "MILK10k_Training_GroundTruth.csv", truth)
    for n in range(3):
        names = [f"ISIC_{2 * n}", f"ISIC_{2 * n + 1}"]
        write_images(root / "MILK10k_Training_Input" / f"IL_{n}", names)


def derm7pt(root: Path) -> None:
    header = "case_num,diagnosis,pigment_network,location,sex,clinic,derm\n"
    rows = [
        "1,clark nevus,typical,back,male,NEL/I0.jpg,NEL/I1.jpg",
        "2,melanoma (in situ),atypical,head neck,female,NEL/I2.jpg,NEL/I3.jpg",
        "3,lentigo,absent,lower limbs,male,NEL/I4.jpg,NEL/I5.jpg",
    ]
    write(root, "meta/meta.csv", header + "\n".join(rows))
    for name, row in {"train": 0, "valid": 1, "test": 2}.items():
        write(root, f"meta/{name}_indexes.csv", f"indexes\n{row}\n")
    write_images(root / "images" / "NEL", [f"I{n}" for n in range(6)])


def midas(root: Path) -> None:
    header = (
        ",midas_record_id,midas_file_name,midas_iscontrol,midas_distance,midas_location,midas_path,"
        "midas_pathreport,midas_gender,midas_age,midas_fitzpatrick,midas_melanoma,midas_ethnicity,"
        "midas_race,length_(mm),width_(mm),clinical_impression_1\n"
    )
    rows = [
        "0,1,I0.jpeg,no,1ft,r upper back,malignant- bcc,text,male,70,ii fair skin,no,,,6,5,bcc",
        "1,1,I1.jpeg,no,6in,r upper back,malignant- bcc,text,male,70,ii fair skin,no,,,6,5,bcc",
        "2,1,I2.jpeg,no,dscope,r upper back,malignant- bcc,text,male,70,ii fair skin,no,,,6,5,bcc",
        "3,1,I3.jpeg,no,dscope,l cheek,benign-melanocytic nevus,text,male,70,ii,no,,,3,3,",
        "4,2,I4.jpg,no,n/a - virtual,scalp,benign-dermatofibroma,text,female,40,,no,,,2,2,",
        "5,2,I5.jpeg,yes,dscope,scalp,,,female,40,,no,,,,,",
    ]
    write(root, "release_midas.csv", header + "\n".join(rows))
    write_images(root / "images", [f"I{n}" for n in range(7)])


def isic_archive(root: Path) -> None:
    header = (
        "isic_id,attribution,copyright_license,age_approx,anatom_site_1,anatom_site_2,diagnosis_1,"
        "diagnosis_2,diagnosis_3,image_type,lesion_id,patient_id,pixels_x,pixels_y,sex\n"
    )
    rows = [
        "I0,A,CC-0,50,Trunk,Back,Benign,Benign melanocytic proliferations,Nevus,dermoscopic,L0,P0,"
        "600,450,male",
        "I1,A,CC-BY,50,Trunk,Back,Benign,Benign melanocytic proliferations,Nevus,"
        "clinical: close-up,L0,P0,600,450,male",
        "I2,B,CC-BY-NC,,,,Malignant,Malignant melanocytic proliferations (Melanoma),"
        "Melanoma Invasive,TBP tile: close-up,L1,P1,133,133,female",
        "I3,B,CC-0,60,Head and neck,Face,Malignant,,Basal cell carcinoma,dermoscopic,,P2,600,450,",
        "I4,B,CC-0,60,Head and neck,Face,Malignant,,Basal cell carcinoma,RCM: mosaic,,P2,600,450,",
    ]
    write(root, "metadata.csv", header + "\n".join(rows))
    write_images(root, [f"I{n}" for n in range(5)])


def image_folder(root: Path) -> None:
    write_images(root / "melanoma", ["a", "b"])
    write_images(root / "nevus" / "deeper", ["c"], ".png")


def csv(root: Path) -> None:
    write(root, "cohort.csv", "image,diagnosis,age\nI0.jpg,mel,50\nI1,nevus,\n")
    write_images(root / "images", ["I0", "I1"])


def packed(root: Path) -> None:
    rows = "I0,P0,40,male,torso,mel,1,siim_isic,600,400\nI1,P1,,,,nv,0,siim_isic,600,400\n"
    header = "image_id,patient_id,age,sex,site,diagnosis,target,source,width,height\n"
    write(root, "cohort.csv", header + rows)
    write_records(root / "shard-00000.tfrec", ["I0", "I1"])


def tfrecord(root: Path) -> None:
    write_records(
        root / "a.tfrec",
        ["I0", "I1"],
        target=([0, 1], "int"),
        diagnosis=([b"nevus", b"melanoma"], "byte"),
    )


def write_records(file: Path, names: list[str], **features: tuple[list[Any], str]) -> None:
    writer = TFRecordWriter(str(file))
    for number, name in enumerate(names):
        record = {"image": (picture(number), "byte"), "image_name": (name.encode(), "byte")}
        extra = {key: (values[number], kind) for key, (values, kind) in features.items()}
        writer.write({**record, **extra})
    writer.close()


WRITERS: Final[dict[str, Callable[[Path], None]]] = {
    "demo": lambda _: None,
    "siim_isic": siim_isic,
    "ham10000": ham10000,
    "isic_2017": isic_2017,
    "isic_2018": isic_2018,
    "isic_2019": isic_2019,
    "isic_2024": isic_2024,
    "pad_ufes_20": pad_ufes_20,
    "milk10k": milk10k,
    "derm7pt": derm7pt,
    "midas": midas,
    "isic_archive": isic_archive,
    "image_folder": image_folder,
    "csv": csv,
    "packed": packed,
    "tfrecord": tfrecord,
}


POSITIVE: Final = {"milk10k": ["bcc", "sccka"], "derm7pt": ["mel"]}
"""Malignant classes of the datasets whose names alone do not decide it."""


def load_table(name: str, root: Path, **settings: object) -> CohortTable:
    settings.setdefault("positive", POSITIVE.get(name, []))
    return load_cohort(DataConfig(name=name, root=str(root), **settings))  # type: ignore[arg-type]


def load(name: str, root: Path, **settings: object) -> pd.DataFrame:
    return load_table(name, root, **settings).rows
