"""Optional task: networks that draw lesion masks, from training to prediction and report."""
