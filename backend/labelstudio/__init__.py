"""Label Studio's side: its labeling configs, its results, and its API. Knows nothing of the model."""
