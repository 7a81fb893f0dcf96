"""Web page and REST API for single patients, on the same predictor as `predict.py`."""
