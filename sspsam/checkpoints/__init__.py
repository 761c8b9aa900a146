"""Weight files: read, verified, converted, downloaded."""
