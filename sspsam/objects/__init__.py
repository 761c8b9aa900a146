"""The objects of a phrase: one mask becomes a mask for each of them."""
