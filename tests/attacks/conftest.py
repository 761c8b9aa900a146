"""The worker's settings for a simulated Label Studio and a real Redis."""

from tests.worker.conftest import environment, image, label_studio, mask, services

__all__ = ["environment", "image", "label_studio", "mask", "services"]
