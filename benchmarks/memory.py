"""Peak memory of ten training steps on a CPU, compared with the estimate of `training/memory.py`.

Each network is trained in a process of its own, on random images of its usual size.

    python benchmarks/memory.py
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import torch

from skinmm.config import Config, from_mapping
from skinmm.images.decode import reuse_freed_memory
from skinmm.models.network import build_network
from skinmm.training.memory import count_stored_bytes

CASES: Final = (
    ("tf_efficientnet_b3", 300, 8, "32"),
    ("tf_efficientnet_lite0", 192, 32, "32"),
    ("vit_small_patch16_224", 224, 16, "32"),
    ("resnet18", 224, 32, "32"),
    ("mobilenetv2_100", 224, 32, "32"),
    ("resnet18", 224, 32, "bf16"),
)


def read_status(field: str) -> int:
    """Return a size in the status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(name: str, size: int, batch: int, precision: str) -> None:
    """Print one line of the table."""
    model = {"name": name, "image_size": size, "pretrained": "false"}
    config = from_mapping(Config, {"model": model, "fusion": {"name": "image_only"}})
    network = build_network(config, [], 2, pretrained=False).to(memory_format=torch.channels_last)
    image = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    per_row = count_stored_bytes(network, [image[:2].to("meta"), None])
    is_bf16 = precision == "bf16"
    weights = sum(parameter.nbytes for parameter in network.parameters())
    estimate = 3 * weights + batch * per_row / (1 + is_bf16)
    optimizer, start = torch.optim.AdamW(network.parameters()), read_status("VmRSS")
    for _ in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
            loss = network(image, None).float().square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    peak = read_status("VmHWM") - start
    cells = (name, size, batch, precision, f"{estimate / 1e6:,.0f}", f"{peak / 1e6:,.0f}")
    print("|", " | ".join(map(str, cells)), f"| {peak / estimate:.2f} |", flush=True)


if __name__ == "__main__":
    if arguments := sys.argv[1:]:
        reuse_freed_memory()  # as in training
        measure(arguments[0], int(arguments[1]), int(arguments[2]), arguments[3])
    else:
        print("| network | px | rows | precision | estimate, MB | measured, MB | ratio |")
        print("|---|---:|---:|---|---:|---:|---:|", flush=True)
        for case in CASES:
            subprocess.run([sys.executable, __file__, *map(str, case)], check=True)  # noqa: S603
