"""Stand-in for the package that hosts models, which conflicts with our dependencies."""
