"""A page and an API for one patient at a time, over the same predictor as `predict.py`."""

from skinmm.serve.run import serve

__all__ = ["serve"]
