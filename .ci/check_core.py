"""Check an installation without extras: its size, the time of `import skinmm`, and a prediction.

Run by the Python of that installation, from any folder. Exit status 1 if something is too much.
"""

import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Final

MEGABYTES: Final = 1200  # besides torch and the libraries of CUDA
SECONDS: Final = 0.3  # of `import skinmm`
TORCH: Final = ("torch", "torchgen", "functorch", "triton", "nvidia", "cuda")
OPTIONAL: Final = ("matplotlib", "segmentation_models_pytorch", "wandb", "tensorboard", "mlflow")
TIME: Final = "import time; t = time.perf_counter(); import skinmm; print(time.perf_counter() - t)"


def measure_size(folder: Path) -> float:
    """Return the MB of the installed packages without torch; links are not followed."""
    total = 0
    for entry in folder.iterdir():
        if entry.name.startswith(TORCH) and not entry.name.startswith(("torchvision", "torchm")):
            continue
        for root, _, files in os.walk(entry) if entry.is_dir() else [(folder, [], [entry.name])]:
            total += sum((Path(root) / file).lstat().st_blocks * 512 for file in files)
    return total / 1e6


def measure_import() -> float:
    """Return the shortest of five times of `import skinmm`, each in a new process."""
    command = [sys.executable, "-c", TIME]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(5)]  # noqa: S603
    return min(float(run.stdout) for run in runs)


def predict() -> int:
    """Predict the embedded table of patients with the included model; return the rows."""
    import pandas as pd

    import skinmm
    from skinmm.config.checkpoints import INCLUDED, find_checkpoints

    demo = Path(skinmm.__file__).parent / "demo"
    predictor = skinmm.Predictor.from_checkpoints(find_checkpoints(INCLUDED))
    predictions = predictor.predict(pd.read_csv(demo / "patients.csv"), demo / "images", workers=0)
    if not predictions["malignancy"].between(0, 1).all():
        raise SystemExit("a prediction is missing")
    return len(predictions)


def main() -> int:
    """Print the figures and return the exit status."""
    present = [name for name in OPTIONAL if find_spec(name)]
    size, seconds = measure_size(Path(sysconfig.get_path("purelib"))), measure_import()
    sys.stdout.write(f"size besides torch: {size:.0f} MB (at most {MEGABYTES})\n")
    sys.stdout.write(f"import skinmm: {seconds:.3f} s (at most {SECONDS})\n")
    sys.stdout.write(f"packages of extras: {', '.join(present) or 'none'}\n")
    sys.stdout.write(f"predicted {predict()} rows\n")
    return int(bool(present) or size > MEGABYTES or seconds > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
