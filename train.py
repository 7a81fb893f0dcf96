"""Train a model: `python train.py model=effnet_b3 fusion=concat data=siim_isic data.root=DIR`."""

import sys

from skinmm.cli.main import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
