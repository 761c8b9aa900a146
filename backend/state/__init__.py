"""State shared between processes, in Redis."""
