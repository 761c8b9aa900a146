"""Synthetic sticker scenes with phrases."""
