"""The model: SSP-SAM's own parts, CLIP and SAM."""
