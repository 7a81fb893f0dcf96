"""One lesion, one exported model, no PyTorch: needs onnxruntime, numpy and pillow.

python onnx_predict.py best.onnx lesion.jpg age=55 sex=female site=torso
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, picture, *known = sys.argv[1:]
record = dict(item.split("=", 1) for item in known)
session = onnxruntime.InferenceSession(model)
metadata = session.get_modelmeta().custom_metadata_map
about = {name: json.loads(text) for name, text in metadata.items()}
if about["preprocess"]:
    sys.exit(f"the picture must be taken through {about['preprocess']} first, as in training")
inputs = {each.name: None for each in session.get_inputs()}

encoded = []  # of a number: scaled, and whether it is missing; of a category: which, the last: none
for column in about["encoder"]:
    given = record.get(column["name"])
    if column["kind"] == "numeric":
        scaled = 0.0 if given is None else (float(given) - column["mean"]) / column["scale"]
        encoded += [scaled, float(given is None)]
    else:
        place = column["values"].index(given) if given in column["values"] else -1
        encoded += np.eye(len(column["values"]) + 1)[place].tolist()
if "record" in inputs:
    inputs["record"] = np.array([encoded], np.float32)
if "image" in inputs:
    size = (about["image_size"], about["image_size"])
    pixels = Image.open(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    inputs["image"] = np.asarray(pixels).transpose(2, 0, 1)[None]
if "shown" in inputs:
    inputs["shown"] = np.array([True])

(probabilities,) = session.run(["probabilities"], inputs)[0]
malignancy = probabilities[np.isin(about["classes"], about["positive"])].sum()
decision = "malignant" if malignancy >= about["threshold"] else "benign"
print(json.dumps({"malignancy": float(malignancy), "decision": decision}))
