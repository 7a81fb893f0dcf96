"""Lesion segmentation: training, prediction and report of masks."""
