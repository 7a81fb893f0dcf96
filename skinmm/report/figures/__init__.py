"""Drawings as inline SVG: vector, colour-blind safe, legible in print."""
