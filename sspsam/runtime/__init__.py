"""Process settings: threads, streams, allocator, matrix products."""
