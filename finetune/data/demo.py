"""What the weights that ship in the package have learned from."""

NOUNS = ("core", "base")
"""Groups of the vocabulary's nouns that they know."""
SCENES = f"stickers/train?nouns={','.join(NOUNS)}"
"""As for finetune.data.dataset.open_dataset."""
VALIDATION = f"stickers/val?nouns={','.join(NOUNS)}&count=40&phrases=6"
"""Scenes that none of them was in, enough to see a loss of two points, and few enough for a laptop."""
