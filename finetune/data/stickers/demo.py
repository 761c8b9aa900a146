"""Training and validation data of the weights that ship in the package."""

NOUNS = ("core", "base")
"""Groups of nouns that the weights were trained on."""
SCENES = f"stickers/train?nouns={','.join(NOUNS)}"
"""As for finetune.data.dataset.open_dataset."""
VALIDATION = f"stickers/val?nouns={','.join(NOUNS)}&count=40&phrases=6"
"""Scenes of the validation split; both versions are evaluated on all of them in every fine-tune."""
