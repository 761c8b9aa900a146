"""Pixels: image files, coordinate frames and mask formats."""
