"""The served model: micro-batching, embeddings, weight swaps."""
