"""Annotations collected and counted."""
