"""Published referring-expression data sets."""
