"""The commands of the package, one module per group."""
