"""Batch work on projects: pre-labeling, prefetching, active learning."""
