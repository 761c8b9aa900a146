"""What the weights that ship in the package have learned from."""

NOUNS = ("core", "base")
"""Groups of the vocabulary's nouns that they know."""
SCENES = f"stickers/train?nouns={','.join(NOUNS)}"
"""As for finetune.data.dataset.open_dataset."""
