"""Prediction for lists of patients; `Predictor` is public API."""

from skinmm.predict.job import predict_file
from skinmm.predict.predictor import Predictor

__all__ = ["Predictor", "predict_file"]
