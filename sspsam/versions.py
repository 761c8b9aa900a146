"""Our fine-tuned versions on disk: publish, list, promote, roll back.

A version is a folder, `<root>/versions/<preset>/<version id>/`, with the trainable tensors
(`weights.safetensors`), a card (`card.json`) and whatever else belongs to it, such as a report. The weights
that ship with the preset are the base version; it has no folder and cannot be deleted. Which version serves
is written in one small file, `current.json`, that is only ever replaced as a whole.

Writers may be several processes: a version becomes visible with one rename, and changes of `current.json` and
of cards are made under a lock on the store. Readers take no lock.

Errors:
    VersionError
        UnknownVersionError   no such version: choose one of `list()`
        DamagedVersionError   a file is missing or differs from its sha256: promote another version
        ForeignVersionError   it was trained on other frozen weights: serve with those, or promote another
        VersionStateError     this step is not possible now, such as a rollback with nothing to go back to
"""

from __future__ import annotations

import builtins
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sspsam.files import replace_text, sha256_of_file, sync_folder

if TYPE_CHECKING:
    import torch

Status = Literal["candidate", "promoted", "rejected"]

WEIGHTS = "weights.safetensors"
CARD = "card.json"
CURRENT = "current.json"
VERSIONS_CHANNEL = "sspsam:versions"
"""Redis channel on which the id of the version that serves from now on is published."""

_ID_DIGITS = 4


class VersionError(Exception):
    """Something about a version; see the tree in the module's docstring."""


class UnknownVersionError(VersionError, LookupError):
    """No version of that id in the store."""


class DamagedVersionError(VersionError):
    """A version's file is missing, or is not the one that was published."""


class ForeignVersionError(VersionError):
    """A version belongs to other frozen weights than those that it would be loaded onto."""


class VersionStateError(VersionError):
    """The step asked for does not fit the state of the store."""


@dataclass(frozen=True)
class VersionCard:
    """What is known about a version."""

    version_id: str = ""
    """Given by `publish`; Label Studio's model_version is exactly this."""
    preset: str = ""
    parent: str = ""
    """The version the training started from."""
    parents_sha256: dict[str, str] = field(default_factory=dict)
    """Frozen weights that these tensors belong to, as `frozen_weights` names them; empty: not known."""
    created_at: str = ""
    """ISO 8601, UTC."""
    status: Status = "candidate"
    reason: str = ""
    """Why it was promoted or rejected, in words."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """{"incumbent": {...}, "candidate": {...}, "held_out_samples": n}; values in 0..1."""
    data: dict[str, Any] = field(default_factory=dict)
    """{"digest", "records", "project"} of the training data."""
    config: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each file of the version but the card: name -> hex digest."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VersionCard:
        """Reads a card; fields that this code does not know are left out.

        Raises:
            DamagedVersionError: the text is not a card.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("expected an object")
            known = {entry.name for entry in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"not a version card: {error}") from error


@dataclass(frozen=True)
class HistoryEntry:
    """One change of the version that serves."""

    action: Literal["promote", "rollback"]
    version_id: str
    """The version that served from then on."""
    before: str
    at: str
    """ISO 8601, UTC."""


class VersionStore:
    """The versions of one preset under a root folder. Making one opens nothing.

    Args:
        root: MODEL_DIR. Folders are made when something is first written.
        preset: Name of the preset; versions of another preset are not seen.
        weights: File of the preset's weights, onto which versions are loaded; None for those in the package.
    """

    def __init__(self, root: Path, preset: str, weights: Path | None = None) -> None:
        self.preset = preset
        self.weights = weights
        self.folder = Path(root) / "versions" / preset

    @property
    def base_version(self) -> str:
        """Id of the weights that ship with the preset."""
        return f"{self.preset}-base"

    def list(self) -> builtins.list[VersionCard]:
        """Returns all cards, the base first, then by id. A version with an unreadable card is left out."""
        cards = [self._base_card()]
        for version_id in self._published_ids():
            try:
                cards.append(self.get(version_id))
            except DamagedVersionError:
                continue
        return cards

    def get(self, version_id: str) -> VersionCard:
        """Reads a card.

        Raises:
            UnknownVersionError: there is no such version.
            DamagedVersionError: its card cannot be read.
        """
        if version_id == self.base_version:
            return self._base_card()
        try:
            text = (self.path(version_id) / CARD).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DamagedVersionError(f"not a version card: {error}") from error
        return VersionCard.from_json(text)

    def path(self, version_id: str) -> Path:
        """Returns the folder of a published version.

        Raises:
            UnknownVersionError: there is no such version, or it is the base, which has no folder.
        """
        folder = self.folder / version_id
        if version_id not in self._published_ids() or not (folder / CARD).is_file():
            known = ", ".join([self.base_version, *self._published_ids()])
            raise UnknownVersionError(f"no version {version_id!r} of {self.preset}; there are: {known}")
        return folder

    def current(self) -> str:
        """Returns the id of the version that serves."""
        return str(self._read_state()["version_id"])

    def history(self) -> builtins.list[HistoryEntry]:
        """Returns every promotion and rollback, oldest first."""
        return [HistoryEntry(**entry) for entry in self._read_state()["history"]]

    def publish(
        self, state: Mapping[str, torch.Tensor], card: VersionCard, files: Mapping[str, Path | str]
    ) -> VersionCard:
        """Adds a version. It does not serve until it is promoted.

        The folder is written aside and moved in with one rename, so that a crash leaves no half version.

        Args:
            state: The trainable tensors.
            card: Its version_id, preset, created_at and sha256 are filled in here.
            files: More files, name -> a path to copy or the text itself.

        Returns:
            The card as it was stored.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            _write_files(aside, state, files)
            card = replace(card, preset=self.preset, created_at=_now(), sha256=_digests(aside))
            return self._move_in(aside, card)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def load(self, version_id: str) -> dict[str, torch.Tensor]:
        """Reads the trainable tensors of a version, on the CPU; every file's sha256 is checked first.

        Returns:
            name -> tensor; empty for the base version, whose weights ship with the preset.

        Raises:
            UnknownVersionError: there is no such version.
            DamagedVersionError: a file is missing or was changed, or the tensors cannot be read.
            ForeignVersionError: it was trained on other frozen weights.
        """
        if version_id == self.base_version:
            return {}
        self.verify(version_id)
        import safetensors.torch

        try:
            return safetensors.torch.load_file(self.path(version_id) / WEIGHTS)
        except Exception as error:  # the Rust library's errors share no better base class
            raise DamagedVersionError(f"the weights of {version_id} cannot be read: {error}") from error

    def weights_path(self, version_id: str) -> Path | None:
        """Returns the checked safetensors file of a version; None for the base version.

        Raises:
            UnknownVersionError, DamagedVersionError, ForeignVersionError: as `load`.
        """
        if version_id == self.base_version:
            return None
        self.verify(version_id)
        return self.path(version_id) / WEIGHTS

    def verify(self, version_id: str) -> None:
        """Compares a published version's files, and the weights it would be loaded onto, with its card.

        Raises:
            UnknownVersionError: there is no such version.
            DamagedVersionError: a file is missing or differs; the message names it.
            ForeignVersionError: it was trained on other frozen weights.
        """
        folder, card = self.path(version_id), self.get(version_id)
        if not isinstance(card.sha256, dict):
            raise DamagedVersionError(f"{version_id}: its card has no sha256")
        for name, expected in {WEIGHTS: "", **card.sha256}.items():
            if Path(name).name != name:
                raise DamagedVersionError(f"{version_id}: its card names a file outside of it, {name!r}")
            if not (folder / name).is_file():
                raise DamagedVersionError(f"{version_id}: {name} is missing")
            if sha256_of_file(folder / name) != expected:
                raise DamagedVersionError(f"{version_id}: {name} differs from what was published (sha256)")
        self._check_parents(card)

    def _check_parents(self, card: VersionCard) -> None:
        """By content: the same weights may have another name today."""
        if card.parents_sha256 and set(card.parents_sha256.values()) != set(self._frozen.values()):
            raise ForeignVersionError(
                f"{card.version_id} was trained on {_named(card.parents_sha256)}, but {_named(self._frozen)} "
                "would serve with it: set WEIGHTS to the file that it was trained on, or promote another"
            )

    @cached_property
    def _frozen(self) -> dict[str, str]:
        from sspsam.predictor import frozen_weights

        return frozen_weights(self.preset, self.weights)

    def promote(self, version_id: str, reason: str = "promoted by hand") -> VersionCard:
        """Makes a version the one that serves.

        Raises:
            UnknownVersionError, DamagedVersionError, ForeignVersionError: it cannot serve; nothing changes.
        """
        if version_id != self.base_version:
            self.verify(version_id)
        with self._lock():
            state = self._read_state()
            self._set_status(version_id, "promoted", reason)
            if version_id != state["version_id"]:
                state["stack"].append(state["version_id"])
                self._change_current(state, "promote", version_id)
        return self.get(version_id)

    def reject(self, version_id: str, reason: str) -> VersionCard:
        """Notes why a version does not serve; its files stay.

        Raises:
            UnknownVersionError: there is no such version.
            VersionStateError: it serves, or is the base version: roll back first.
        """
        with self._lock():
            if version_id in (self.current(), self.base_version):
                raise VersionStateError(
                    f"{version_id} cannot be rejected: it serves, or ships with the preset"
                )
            self._set_status(version_id, "rejected", reason)
        return self.get(version_id)

    def rollback(self, reason: str = "rolled back by hand") -> str:
        """Goes back to the version that served before the current one was promoted.

        Returns:
            The id of the version that serves now.

        Raises:
            VersionStateError: nothing was promoted before.
            DamagedVersionError, ForeignVersionError: what it would go back to cannot serve; nothing changes.
        """
        with self._lock():
            state = self._read_state()
            if not state["stack"]:
                raise VersionStateError(f"nothing to roll back to: {state['version_id']} serves")
            left, target = state["version_id"], state["stack"].pop()
            if target != self.base_version:
                self.verify(target)
            self._change_current(state, "rollback", target)
            if left != self.base_version and (self.folder / left / CARD).is_file():
                self._set_status(left, "rejected", reason)
        return str(target)

    def _base_card(self) -> VersionCard:
        return VersionCard(
            version_id=self.base_version,
            preset=self.preset,
            status="promoted",
            reason="ships with the preset",
        )

    def _published_ids(self) -> builtins.list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.is_dir() and self._number(entry.name) is not None
        )

    def _number(self, version_id: str) -> int | None:
        digits = version_id.removeprefix(f"{self.preset}-")
        return int(digits) if version_id != digits and digits.isdecimal() else None

    def _move_in(self, aside: Path, card: VersionCard) -> VersionCard:
        """Gives the folder the next free id; a rename onto a folder that another writer made fails."""
        while True:
            seen = [*self._published_ids(), *(entry.version_id for entry in self.history())]
            number = 1 + max((self._number(version_id) or 0 for version_id in seen), default=0)
            card = replace(card, version_id=f"{self.preset}-{number:0{_ID_DIGITS}d}")
            replace_text(aside / CARD, card.to_json())
            try:
                os.rename(aside, self.folder / card.version_id)
            except OSError:
                if not (self.folder / card.version_id).exists():
                    raise
                continue
            sync_folder(self.folder)
            return card

    def _set_status(self, version_id: str, status: Status, reason: str) -> None:
        if version_id == self.base_version:
            return
        card = replace(self.get(version_id), status=status, reason=reason)
        replace_text(self.path(version_id) / CARD, card.to_json())

    def _read_state(self) -> dict[str, Any]:
        """{"version_id", "stack": ids to roll back to, newest last, "history"}."""
        try:
            text = (self.folder / CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"version_id": self.base_version, "stack": [], "history": []}
        try:
            state: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedVersionError(f"{self.folder / CURRENT} cannot be read: {error}") from error
        known = {"version_id": str, "stack": builtins.list, "history": builtins.list}
        if not isinstance(state, dict) or not all(
            isinstance(state.get(k), kind) for k, kind in known.items()
        ):
            raise DamagedVersionError(f"{self.folder / CURRENT} lacks one of: {', '.join(known)}")
        return state

    def _change_current(
        self, state: dict[str, Any], action: Literal["promote", "rollback"], version_id: str
    ) -> None:
        state["history"].append(asdict(HistoryEntry(action, version_id, state["version_id"], _now())))
        state["version_id"] = version_id
        replace_text(self.folder / CURRENT, json.dumps(state, indent=2))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _named(weights: Mapping[str, str]) -> str:
    digits = ", ".join(f"{name} (sha256 {sha256[:12]}...)" for name, sha256 in sorted(weights.items()))
    return digits or "random weights"


def _write_files(folder: Path, state: Mapping[str, torch.Tensor], files: Mapping[str, Path | str]) -> None:
    from sspsam.checkpoints import write_tensors

    write_tensors(folder / WEIGHTS, state)
    for name, content in files.items():
        if name in (WEIGHTS, CARD) or Path(name).name != name:
            raise ValueError(f"a version cannot hold a file named {name!r}")
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(content, encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
