"""Metrics, intervals and decision rules from prediction files, without PyTorch."""
