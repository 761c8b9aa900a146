"""Reads the tensors of a TorchScript archive, as OpenAI publishes CLIP, without loading its program.

`torch.jit.load` compiles the code in the archive. Here only its attribute pickle is read, by an unpickler
restricted to tensors and containers: modules become plain attribute holders, and any other name in the pickle
is refused. Storages are memory-mapped, not copied.

Layout of the archive: https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER_SIZE = 30
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n(?P<state>(?:  __(?:parameters|buffers)__ = \[.*\]\n)+)", re.M
)
_QUOTED = re.compile(r'"([^"]+)"')
_CODE = "__torch__"
"""Module prefix of the archive's classes."""


def is_torchscript(path: Path) -> bool:
    """Whether the file was written by torch.jit.save."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Reads parameters and buffers, named as in `torch.jit.load(path).state_dict()`.

    Raises:
        pickle.UnpicklingError: the archive contains anything but tensors and plain values.
        zipfile.BadZipFile, KeyError, ValueError, RuntimeError, struct.error: it is damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        root = archive.namelist()[0].partition("/")[0]
        storages = _Storages(archive, file, f"{root}/data/")
        program = io.BytesIO(archive.read(f"{root}/data.pkl"))
        try:
            module = _TensorUnpickler(program, storages, _script_classes(archive, root)).load()
        except (TypeError, AttributeError, IndexError) as error:
            raise pickle.UnpicklingError(
                f"its attributes are not pickled in TorchScript's format: {error}"
            ) from error
    return dict(_state(module, "", set()))


class _ScriptObject:
    """Placeholder for every class of the archive: holds attributes, has no behaviour."""

    state_names: frozenset[str] | None = None
    """Names of its parameters and buffers; None if the program does not tell: all."""

    def __init__(self, *_arguments: object) -> None:
        self.attributes: dict[str, Any] = {}

    def __new__(cls, *_arguments: object) -> _ScriptObject:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


def _script_classes(archive: zipfile.ZipFile, root: str) -> dict[tuple[str, str], type[_ScriptObject]]:
    """The archive's classes by module and name; parameters and buffers are parsed from its source text."""
    classes = {}
    for file in archive.namelist():
        folder, _, module = file.partition(f"{root}/code/")
        if folder or not module.endswith(".py"):
            continue
        for found in _CLASS.finditer(archive.read(file).decode()):
            names = frozenset(_QUOTED.findall(found["state"]))
            where = module.removesuffix(".py").replace("/", ".")
            classes[where, found["name"]] = type(found["name"], (_ScriptObject,), {"state_names": names})
    return classes


class _Storages:
    """The archive's storages, as one-dimensional tensors."""

    def __init__(self, archive: zipfile.ZipFile, file: io.BufferedReader, folder: str) -> None:
        self._archive, self._file, self._folder = archive, file, folder
        # Copy on write: changes to a tensor never reach the file.
        self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, dtype: torch.dtype, key: str, count: int) -> Tensor:
        info = self._archive.getinfo(self._folder + key)
        size = count * dtype.itemsize
        if size > info.file_size:
            raise ValueError(f"storage {key} has {info.file_size} bytes, expected {size}")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if info.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self._archive.read(info)), dtype=dtype, count=count)
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=self._offset(info))

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Offset of the stored bytes: after the local header, whose length differs from the directory's
        entry.
        """
        self._file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", self._file.read(_LOCAL_HEADER_SIZE))
        return int(info.header_offset + _LOCAL_HEADER_SIZE + name_length + extra_length)


class _TensorUnpickler(pickle.Unpickler):
    """Restricted to the content of TorchScript archives; all names that it resolves only build tensors."""

    def __init__(
        self, file: io.BytesIO, storages: _Storages, classes: dict[tuple[str, str], type[_ScriptObject]]
    ) -> None:
        super().__init__(file)
        self._storages, self._classes = storages, classes

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == _CODE:
            return self._classes.get((module, name), _ScriptObject)
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):  # lists of one type
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):  # containers of one type
            return lambda container, _type: container
        raise pickle.UnpicklingError(f"a TorchScript archive of tensors does not need {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"expected a storage, got {kind!r}")
        return self._storages.read(dtype, str(key), int(count))


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: object
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _state(value: object, prefix: str, above: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Walks the modules; `above` contains the ancestors, to stop at cycles."""
    if not isinstance(value, _ScriptObject) or id(value) in above:
        return
    for name, held in value.attributes.items():
        if isinstance(held, Tensor) and (value.state_names is None or name in value.state_names):
            yield f"{prefix}{name}", held
        else:
            yield from _state(held, f"{prefix}{name}.", above | {id(value)})
