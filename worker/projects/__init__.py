"""Whole projects: pre-labeling, prefetching, active learning."""
