"""Stands in for the package that hosts models, which cannot be installed beside everything else."""
