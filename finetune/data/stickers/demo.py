"""What the weights that ship in the package have learned from."""

NOUNS = ("core", "base")
"""Groups of the vocabulary's nouns that they know."""
SCENES = f"stickers/train?nouns={','.join(NOUNS)}"
"""As for finetune.data.dataset.open_dataset."""
VALIDATION = f"stickers/val?nouns={','.join(NOUNS)}&count=40&phrases=6"
"""Scenes of another split than theirs; both versions are asked about all of them in every fine-tune."""
