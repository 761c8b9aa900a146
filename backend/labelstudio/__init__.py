"""Label Studio's side: labeling configs, results, and API. Independent of the model."""
