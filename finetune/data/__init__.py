"""Data sets of pictures with phrases and masks, each known by a public name and a split."""
