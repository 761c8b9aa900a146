"""Training SSP-SAM, the data sets it learns from, and how good it is on them."""
