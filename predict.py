"""Predict a table: `python predict.py checkpoint=best.ckpt input=patients.csv images=DIR`."""

import sys

from skinmm.cli.main import predict

if __name__ == "__main__":
    sys.exit(predict(sys.argv[1:]))
