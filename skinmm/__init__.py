"""skinmm: multimodal skin-lesion classification whose numbers can be believed."""

__version__ = "0.2.0"
