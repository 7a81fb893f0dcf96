"""Memory and speed of a training step by `model.tune`: ViT-S at 224 px, 8 rows, 20 steps.

Each kind is trained in a process of its own, on random images, with AdamW on the CPU.

    python benchmarks/tune.py
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import torch
from memory import read_status

from skinmm.config import Config, from_mapping
from skinmm.models.network import build_network

KINDS: Final = ("all", "lora", "norm", "head")
STEPS: Final = 20
ROWS: Final = 8


def measure(kind: str) -> None:
    """Print one line of the table."""
    model = {"name": "vit_small_patch16_224", "image_size": 224, "pretrained": "false"}
    settings = {"model": {**model, "tune": kind}, "fusion": {"name": "image_only"}}
    network = build_network(from_mapping(Config, settings), [], 2, pretrained=True).train()
    image = torch.randint(256, (ROWS, 3, 224, 224), dtype=torch.uint8)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer, start = torch.optim.AdamW(trained), read_status("VmRSS")
    used = 0.0
    for step in range(STEPS + 1):
        loss = network(image, None).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:  # allocates
            used = time.process_time()
    seconds = (time.process_time() - used) / STEPS
    peak = read_status("VmHWM") - start
    count = sum(parameter.numel() for parameter in trained)
    cells = (f"{count:,}", f"{peak / 1e6:,.0f}", f"{seconds:.2f}")
    print("|", kind, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    if arguments := sys.argv[1:]:
        measure(arguments[0])
    else:
        print("| model.tune | trained parameters | peak, MB | CPU s a step |")
        print("|---|---|---|---|", flush=True)
        for kind in KINDS:
            subprocess.run([sys.executable, str(Path(__file__)), kind], check=True)  # noqa: S603
