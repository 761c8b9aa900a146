"""Table of public weights: location, size, licence and sha256."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote, unquote

HUB = "https://huggingface.co"
HUB_REPOSITORY = "wayneicloud/SSP-SAM"
"""Repository of the SSP-SAM authors' checkpoints."""


@dataclass(frozen=True)
class PublicFile:
    """One published file."""

    name: str
    """Name on the command line."""
    what: str
    url: str
    licence: str
    size_bytes: int | None
    """None if only the server knows it."""
    sha256: str | None
    """None if unpublished: then the one stated by the hub, else that of the first download."""
    sha256_from: str
    """Source of the sha256."""
    page: str = ""
    """Public page that describes where the file is."""

    @property
    def file_name(self) -> str:
        """Local file name: SSP-SAM's checkpoints share one file name, so theirs is the whole path."""
        if self.url.startswith(f"{HUB}/"):
            repository, _, path = self.url.removeprefix(f"{HUB}/").partition("/resolve/main/")
            return "_".join([repository.rpartition("/")[2], *unquote(path).split("/")])
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Record:
    """Record of a downloaded file; stored next to it, as `<file>.json`."""

    name: str
    url: str
    """Published URL."""
    fetched_from: str
    """Actual source: the published URL, or a mirror."""
    licence: str
    size_bytes: int
    sha256: str
    sha256_from: str
    """Source of the expected sha256."""
    fetched_at: str
    """ISO 8601, UTC."""

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Reads a record; None if missing or unreadable."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{entry.name: values[entry.name] for entry in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def hub_file(
    path: str, name: str = "", size_bytes: int | None = None, sha256: str | None = None
) -> PublicFile:
    """A file of the authors' repository on the hub.

    Args:
        path: inside the repository.
        name: name on the command line; by default `hub:<path>`.
        size_bytes: as listed by the hub.
        sha256: as listed by the hub.
    """
    return PublicFile(
        name=name or f"{HUB_PREFIX}{path}",
        what=f"{HUB_REPOSITORY}: {path}",
        url=f"{HUB}/{HUB_REPOSITORY}/resolve/main/{quote(path)}",
        licence="Apache-2.0",
        size_bytes=size_bytes,
        sha256=sha256,
        sha256_from=BY_HUB,
        page=f"{HUB}/{HUB_REPOSITORY}",
    )


HUB_PREFIX = "hub:"
"""Prefix for paths in the authors' repository."""
BY_HUB = "the hub, in X-Linked-ETag, at the time of the download"

_CLIP = "https://openaipublic.azureedge.net/clip/models"
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_BY_OPENAI = "OpenAI, in the URL"
_CLIP_PAGE = "https://github.com/openai/CLIP"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"
_MOBILE_PAGE = "https://github.com/ChaoningZhang/MobileSAM"
_BY_OTHERS = (
    "recorded identically by independent projects (micro-sam, the SAM extension of 3D Slicer); Meta "
    "publishes only the beginning of the MD5, in the file names"
)

PUBLIC_FILES: tuple[PublicFile, ...] = (
    PublicFile(
        "sam-vit-b", "SAM ViT-B", f"{_SAM}/sam_vit_b_01ec64.pth", "Apache-2.0", 375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", _BY_OTHERS, _SAM_PAGE,
    ),
    PublicFile(
        "sam-vit-l", "SAM ViT-L", f"{_SAM}/sam_vit_l_0b3195.pth", "Apache-2.0", 1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", _BY_OTHERS, _SAM_PAGE,
    ),
    PublicFile(
        "sam-vit-h", "SAM ViT-H, for both variants", f"{_SAM}/sam_vit_h_4b8939.pth",
        "Apache-2.0", 2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", _BY_OTHERS, _SAM_PAGE,
    ),
    PublicFile(
        "mobile-sam", "MobileSAM, replaces SAM ViT-H",
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "Apache-2.0", 40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "recorded identically by independent projects (LibreYOLO, others); its authors publish none",
        _MOBILE_PAGE,
    ),
    PublicFile(
        "clip-vit-b-16", "OpenAI CLIP ViT-B/16, for ssp-sam-224",
        f"{_CLIP}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        "MIT", 350_837_078,
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", _BY_OPENAI, _CLIP_PAGE,
    ),
    PublicFile(
        "clip-vit-l-14-336", "OpenAI CLIP ViT-L/14@336px, for ssp-sam-336",
        f"{_CLIP}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        "MIT", 934_088_680,
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", _BY_OPENAI, _CLIP_PAGE,
    ),
    # The authors publish neither paths nor sha256. Others have run two of these; that of 336 px is expected
    # beside its 224 px counterpart. The hub lists all files.
    hub_file("output/grefcoco/224/checkpoint_best_miou.pth", "ssp-sam-224-grefcoco"),
    hub_file("output/grefcoco/336/checkpoint_best_miou.pth", "ssp-sam-336-grefcoco"),
    hub_file("pretrained_checkpoints/CS/CS-ViT-B-16.pt", "ssp-sam-224-clip"),
)  # fmt: skip


class UnknownWeightsError(ValueError):
    """No public file has this name."""


def find_public_file(name: str) -> PublicFile:
    """Finds a file by its name in the table, or `hub:<path>` of another file of the authors' repository.

    Raises:
        UnknownWeightsError: unknown name.
    """
    for file in PUBLIC_FILES:
        if file.name == name:
            return file
    if name.startswith(HUB_PREFIX) and name != HUB_PREFIX:
        return hub_file(name.removeprefix(HUB_PREFIX))
    known = ", ".join(file.name for file in PUBLIC_FILES)
    raise UnknownWeightsError(
        f"unknown weights {name!r}, expected one of: {known}, or {HUB_PREFIX}<path on the hub>"
    )


def find_by_sha256(sha256: str) -> PublicFile | None:
    """The published file with this content, if any."""
    return next((file for file in PUBLIC_FILES if file.sha256 == sha256), None)


def record_path(path: Path) -> Path:
    """Path of a downloaded file's record."""
    return path.with_name(path.name + ".json")
