"""What the weights that ship in the package have learned from."""

NOUNS = "first"
"""Group of the vocabulary's nouns that they know."""
FAMILIES = ("noun", "place", "none")
SCENES = f"stickers/train?nouns={NOUNS}&families={','.join(FAMILIES)}"
"""As for finetune.data.dataset.open_dataset."""
