"""Optional task: segmentation of lesions, from training to prediction and report."""
