"""Regions of a labeling config: the controls that make them, their labels, and their shapes in results."""
