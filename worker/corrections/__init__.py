"""Collection of annotations and counts of the feedback in them."""
