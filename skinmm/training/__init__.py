"""Training: from a configuration to a finished run folder."""
