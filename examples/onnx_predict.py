"""Predict one lesion with an exported model, without PyTorch (onnxruntime, numpy, pillow).

python onnx_predict.py best.onnx lesion.jpg age=55 sex=female site=torso
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def end(status: int, reason: object) -> None:
    """Print an error and exit."""
    print("error:", *str(reason).split(), file=sys.stderr)
    sys.exit(status)


try:
    model, picture, *cells = sys.argv[1:]
    record = dict(item.split("=", 1) for item in cells)
    # The optimiser would quantise layers that the file keeps in 32 bits.
    session = onnxruntime.InferenceSession(model, disabled_optimizers=["WeightBiasQuantization"])
    metadata = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(text) for name, text in metadata.items()}
    columns, steps = {column["name"]: column for column in about["encoder"]}, about["preprocess"]
except Exception as error:
    end(2, f"usage: onnx_predict.py MODEL.onnx IMAGE [COLUMN=VALUE ...]: {error}")
if steps:
    end(2, f"the model needs images preprocessed by {steps}, which this example lacks")
if unknown := record.keys() - columns:
    end(2, f"no column {', '.join(unknown)}; choose from {', '.join(columns)}")

# Numbers: standardised value and a flag for missing. Categories: one-hot, the last for missing.
encoded = []
try:
    for name, column in columns.items():
        value = record.get(name)
        if column["kind"] == "numeric":
            encoded += [(float(value) - column["mean"]) / column["scale"], 0] if value else [0, 1]
        else:
            index = column["values"].index(value) if value in column["values"] else -1
            encoded += np.eye(len(column["values"]) + 1)[index].tolist()
    inputs = {"record": np.array([encoded], np.float32), "shown": np.array([True])}
    if side := about["image_size"]:
        opened = Image.open(picture).convert("RGB")
        is_plain = all(low == high for low, high in opened.getextrema())
        if is_plain or min(opened.size) < 16:  # noqa: PLR2004  pixels
            end(3, f"{picture}: the image is too small or has a single colour")
        pixels = opened.resize((side, side), Image.Resampling.BILINEAR)
        inputs["image"] = np.asarray(pixels).transpose(2, 0, 1)[None]
except Exception as error:
    end(3, f"{picture}: {error}")
names = [node.name for node in session.get_outputs()]
feed = {node.name: inputs[node.name] for node in session.get_inputs()}
outputs = dict(zip(names, session.run(names, feed), strict=True))

(probabilities,), positive = outputs["probabilities"], np.isin(about["classes"], about["positive"])
malignancy = probabilities[positive].sum()  # refer if never calibrated, or unlike development
called = malignancy >= (about["threshold"] or 0)
refer = about["threshold"] is None or ("ood" in outputs and outputs["ood"][0] > 1)
if band := about.get("band"):  # refer where neither decision is safe
    refer |= malignancy < band["high"]["value"] if called else malignancy >= band["low"]["value"]
elif about["conformal"]:  # older model: refer unless the prediction set agrees with the threshold
    in_set = probabilities >= [*about["conformal"]["limits"].values()]
    refer |= in_set[positive].any() != called or in_set[~positive].any() == called
decision = "refer" if refer else "malignant" if called else "benign"
print(json.dumps({"malignancy": float(malignancy), "decision": decision}))
