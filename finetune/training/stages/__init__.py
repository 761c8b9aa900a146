"""The training stages: pre-training, REC and SSP."""
