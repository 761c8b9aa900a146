"""Data sets of images with phrases and masks, each opened by name and split."""
