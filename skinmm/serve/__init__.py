"""Web page and REST API for single patients, with the same predictor as `predict.py`."""
