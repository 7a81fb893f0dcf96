"""Cohorts, images and splits: bytes and tables in, arrays out."""
