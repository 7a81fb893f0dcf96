"""One lesion, one exported model, no PyTorch: needs onnxruntime, numpy and pillow.

python onnx_predict.py best.onnx lesion.jpg age=55 sex=female site=torso
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def end(status: int, reason: object) -> None:
    """Ends with one line."""
    print("error:", *str(reason).split(), file=sys.stderr)
    sys.exit(status)


try:
    model, picture, *known = sys.argv[1:]
    record = dict(item.split("=", 1) for item in known)
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(text) for name, text in metadata.items()}
    columns, steps = {each["name"]: each for each in about["encoder"]}, about["preprocess"]
except Exception as error:
    end(2, f"needs MODEL.onnx PICTURE [COLUMN=VALUE ...]: {error}")
if steps:
    end(2, f"the picture must be taken through {steps} first, as in training")
if unknown := record.keys() - columns:
    end(2, f"no column {', '.join(unknown)}; there are {', '.join(columns)}")

encoded = []  # of a number: scaled, and whether it is missing; of a category: which, the last: none
try:
    for name, column in columns.items():
        given = record.get(name)
        if column["kind"] == "numeric":
            encoded += [(float(given) - column["mean"]) / column["scale"], 0] if given else [0, 1]
        else:
            place = column["values"].index(given) if given in column["values"] else -1
            encoded += np.eye(len(column["values"]) + 1)[place].tolist()
    inputs = {"record": np.array([encoded], np.float32), "shown": np.array([True])}
    if side := about["image_size"]:
        opened = Image.open(picture).convert("RGB")
        plain = all(low == high for low, high in opened.getextrema())
        if plain or min(opened.size) < 16:  # noqa: PLR2004  pixels
            end(3, f"{picture}: a few pixels or a single colour: there is nothing to judge")
        pixels = opened.resize((side, side), Image.Resampling.BILINEAR)
        inputs["image"] = np.asarray(pixels).transpose(2, 0, 1)[None]
except Exception as error:
    end(3, f"{picture}: {error}")
names = [each.name for each in session.get_outputs()]
feed = {each.name: inputs[each.name] for each in session.get_inputs()}
said = dict(zip(names, session.run(names, feed), strict=True))

(chances,), positive = said["probabilities"], np.isin(about["classes"], about["positive"])
malignancy = chances[positive].sum()  # to refer: never calibrated, or unlike validation
called = malignancy >= (about["threshold"] or 0)
refer = about["threshold"] is None or ("ood" in said and said["ood"][0] > 1)
if band := about.get("band"):  # neither call is safe around the threshold
    refer |= malignancy < band["high"]["value"] if called else malignancy >= band["low"]["value"]
elif about["conformal"]:  # older model: the prediction set must hold classes of the called side
    held = chances >= [*about["conformal"]["limits"].values()]
    refer |= held[positive].any() != called or held[~positive].any() == called
decision = "refer" if refer else "malignant" if called else "benign"
print(json.dumps({"malignancy": float(malignancy), "decision": decision}))
