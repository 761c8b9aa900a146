"""Fine-tunes: decision, frozen data, training, promotion."""
