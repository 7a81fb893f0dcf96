"""Numbers that can be believed, from prediction files alone: numpy, scipy and scikit-learn."""
