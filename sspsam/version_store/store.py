"""Fine-tuned versions: publish, list, promote, roll back. `sspsam.version_store.pruning` removes them.

A version consists of the trainable tensors (`weights.safetensors`), a card and further files, such as a
report. The preset's base weights are the base version, which is not stored and cannot be deleted. Versions
are stored in folders (`sspsam.version_store.folders`) below `<root>/versions/<preset>/`, or in an object
store (`sspsam.version_store.objects`). In both, a version appears atomically, and its files are verified
against the card when read.

Each project has a line of versions (`sspsam.version_store.lines`). The serving version of every line is
recorded in one small state, which is replaced as a whole. Writers may be several processes on several
machines.

Errors: see `sspsam.version_store.cards`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sspsam.files import sha256_of_file
from sspsam.version_store.cards import (
    WEIGHTS,
    DamagedVersionError,
    ForeignVersionError,
    OutpacedError,
    Status,
    UnknownVersionError,
    UnreachableStoreError,
    VersionCard,
    VersionError,
    VersionStateError,
    now_text,
)
from sspsam.version_store.contents import check_parents, write_files
from sspsam.version_store.folders import CARD, CURRENT, VersionFolders
from sspsam.version_store.lines import (
    DEFAULT_LINE,
    MOST_DIGITS,
    HistoryEntry,
    LineState,
    ModelLines,
    StoreState,
)
from sspsam.version_store.places import open_files

if TYPE_CHECKING:
    import torch

__all__ = [
    "CARD",
    "CURRENT",
    "WEIGHTS",
    "DamagedVersionError",
    "ForeignVersionError",
    "HistoryEntry",
    "OutpacedError",
    "Status",
    "UnknownVersionError",
    "UnreachableStoreError",
    "VersionCard",
    "VersionError",
    "VersionStateError",
    "VersionStore",
]


_ID_DIGITS = 4


class VersionStore:
    """The versions of one preset. The constructor opens nothing.

    Args:
        root: MODEL_DIR. Folders are created on first write.
        preset: Name of the preset; versions of other presets are not visible.
        weights: File of the preset's weights, onto which versions are loaded; None for the packaged ones.
        url: VERSIONS_URL, alternative storage: an fsspec URL. Downloads from there are cached below the root.
        model_lines: MODEL_LINES, a line of versions for each project, or one for all.
    """

    def __init__(
        self,
        root: Path,
        preset: str,
        weights: Path | None = None,
        url: str = "",
        model_lines: ModelLines = "project",
    ) -> None:
        self.preset = preset
        self.weights = weights
        self.model_lines: ModelLines = model_lines
        self.files = open_files(Path(root), preset, url)

    @property
    def folder(self) -> Path:
        """On this machine: the versions, or downloaded copies."""
        return self.files.folder

    @property
    def base_version(self) -> str:
        """ID of the base version."""
        return f"{self.preset}-base"

    def list(self, line: str | None = None) -> builtins.list[VersionCard]:
        """Returns all cards, base first, then by ID. Versions with unreadable cards are left out.

        Args:
            line: Restricts them to a line: its versions, and those that belong to no line.
        """
        cards, state = [self._base_card()], self._state_or_none()
        for version_id in self._published_ids():
            try:
                card = self._card(version_id, state, line)
            except (DamagedVersionError, UnknownVersionError, OSError):
                continue
            if line is None or card.line in (line, DEFAULT_LINE):
                cards.append(card)
        return cards

    def get(self, version_id: str) -> VersionCard:
        """Reads a card.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: its card cannot be read.
        """
        if version_id == self.base_version:
            return self._base_card()
        self._require_known(version_id)
        return self._card(version_id, self._state_or_none())

    def path(self, version_id: str) -> Path:
        """Returns a folder with all files of a published version.

        Raises:
            UnknownVersionError: no such version, or the base, which has no folder.
            DamagedVersionError: its files cannot be retrieved as published.
        """
        self._require_known(version_id)
        if isinstance(self.files, VersionFolders):
            return self.files.folder / version_id
        self.verify(version_id)
        return self.files.path(self.get(version_id))

    def file(self, version_id: str, name: str) -> Path | None:
        """Returns a verified local file of a published version; None if it has none of that name.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: it is missing or was changed.
        """
        card = self.get(version_id)
        if name not in self.file_names(card):
            return None
        return self.files.checked(card, name, card.sha256[name])

    def file_names(self, card: VersionCard) -> builtins.list[str]:
        """Names of a version's published files; none for the base."""
        names = card.sha256 if isinstance(card.sha256, dict) else {}
        return sorted(name for name in names if Path(name).name == name)

    def line_of(self, project_id: int | None) -> str:
        """Returns the line that serves a project; None stands for requests without a project."""
        return self.state().line_of(project_id)

    def current(self, line: str = DEFAULT_LINE) -> str:
        """Returns the ID of the version that serves a line: its own, else the default version."""
        return self.state().current(line)

    def history(self, line: str = DEFAULT_LINE) -> builtins.list[HistoryEntry]:
        """Returns every promotion and rollback of a line, oldest first."""
        return [*self.state().line(line).history]

    def publish(
        self,
        state: Mapping[str, torch.Tensor],
        card: VersionCard,
        files: Mapping[str, Path | str],
        published: Callable[[], VersionCard | None] = lambda: None,
    ) -> VersionCard:
        """Adds a version. It does not serve until it is promoted.

        Files are staged and become a version atomically, so that a crash leaves no partial version.

        Args:
            state: The trainable tensors.
            card: Its version_id, preset, created_at and sha256 are set here.
            files: Further files, name -> a path to copy, or text.
            published: Searches this store for a version that makes this one redundant. Of several concurrent
                writers that search for the same, one adds a version: each searches after it has chosen an ID,
                and the second finds that ID taken and searches again.

        Returns:
            The card as stored, or the one found by `published`.
        """
        with self.files.staging() as staged:
            write_files(staged, state, files)
            sha256 = {path.name: sha256_of_file(path) for path in sorted(staged.iterdir())}
            card = replace(card, preset=self.preset, created_at=now_text(), sha256=sha256)
            self.files.upload(staged)
            while True:
                card = replace(card, version_id=self._next_id())
                if (found := published()) is not None:
                    self.files.discard(staged)
                    return found
                if self.files.commit(staged, card):
                    return card

    def load(self, version_id: str) -> dict[str, torch.Tensor]:
        """Reads a version's trainable tensors, on the CPU, after verifying every file's sha256.

        Returns:
            name -> tensor; empty for the base version.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: a file is missing or was changed, or the tensors cannot be read.
            ForeignVersionError: it was trained on other frozen weights.
        """
        path = self.weights_path(version_id)
        if path is None:
            return {}
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # the Rust library's errors have no better common base class
            raise DamagedVersionError(f"the weights of {version_id} cannot be read: {error}") from error

    def weights_path(self, version_id: str) -> Path | None:
        """Returns the verified safetensors file of a version; None for the base version.

        Raises:
            UnknownVersionError, DamagedVersionError, ForeignVersionError: as `load`.
        """
        if version_id == self.base_version:
            return None
        return self.verify(version_id)

    def verify(self, version_id: str) -> Path:
        """Verifies a published version's files and its frozen weights against its card.

        Returns:
            Its safetensors file on this machine.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: a file is missing or differs; the message names it.
            ForeignVersionError: it was trained on other frozen weights.
        """
        card = self.get(version_id)
        if not isinstance(card.sha256, dict):
            raise DamagedVersionError(f"{version_id}: its card has no sha256")
        sha256 = {WEIGHTS: "", **{name: str(digest) for name, digest in card.sha256.items()}}
        if outside := [name for name in sha256 if Path(name).name != name]:
            raise DamagedVersionError(f"{version_id}: its card names a file outside of it, {outside[0]!r}")
        paths = {name: self.files.checked(card, name, expected) for name, expected in sha256.items()}
        check_parents(card, self.frozen_weights)
        return paths[WEIGHTS]

    def promote(
        self,
        version_id: str,
        reason: str = "promoted by hand",
        line: str | None = None,
        instead_of: str | None = None,
    ) -> VersionCard:
        """Promotes a version to serve a line.

        Args:
            version_id: A version of the line, one that belongs to no line, or the base.
            reason: Stored with the version.
            line: Default: the line that the version belongs to.
            instead_of: The version that has to serve the line until now; None: any.

        Raises:
            UnknownVersionError, DamagedVersionError, ForeignVersionError: it cannot serve; nothing changes.
            VersionStateError: it belongs to another line.
            OutpacedError: another than `instead_of` serves the line; nothing changes.
        """
        card = self.get(version_id)
        line = card.line if line is None else line
        if card.line not in (line, DEFAULT_LINE):
            raise VersionStateError(
                f"{version_id} belongs to {card.line}, not to {line or 'the default line'}: `sspsam versions "
                "adopt` starts a project from another's version"
            )
        if version_id != self.base_version:
            self.verify(version_id)

        def promote(state: LineState) -> LineState:
            if version_id != self.base_version:
                self._require_known(version_id)  # it may have been removed since
            if instead_of not in (None, state.version_id):
                raise OutpacedError(f"{state.version_id} serves in place of {instead_of}")
            return self._judged(state.promote(version_id), version_id, "promoted", reason)

        self._change(line, promote)
        return self._judged_card(version_id, line)

    def reject(self, version_id: str, reason: str) -> VersionCard:
        """Records in the version's line why it is rejected; its files stay.

        Raises:
            UnknownVersionError: no such version.
            VersionStateError: it serves, or is the base version: roll back first.
        """
        line = self.get(version_id).line

        def rejected(state: StoreState) -> StoreState:
            if version_id in (self.base_version, *(each.version_id for each in state.every_line())):
                raise VersionStateError(f"{version_id} cannot be rejected: it serves, or is the base version")
            return state.with_line(line, state.stored_line(line).judge(version_id, "rejected", reason))

        self.change_state(rejected)
        return self._judged_card(version_id, line)

    def rollback(
        self, reason: str = "rolled back by hand", line: str = DEFAULT_LINE, serving: str | None = None
    ) -> str:
        """Rolls a line back to the version that served it before the current one was promoted.

        Args:
            reason: Of the judgement about the current version.
            line: Line of versions.
            serving: Version that is to be replaced; default: whichever serves.

        Returns:
            The ID of the version that serves now.

        Raises:
            VersionStateError: nothing was promoted before, or `serving` no longer serves.
            DamagedVersionError, ForeignVersionError: the previous version cannot serve; nothing changes.
        """

        def rolled_back(state: LineState) -> LineState:
            after = state.roll_back()
            if serving not in (None, state.version_id):
                raise VersionStateError(f"{state.version_id} serves meanwhile: look again, then roll back")
            if after.version_id != self.base_version:
                self.verify(after.version_id)
            return self._judged(after, state.version_id, "rejected", reason)

        return self._change(line, rolled_back).current(line)

    def state(self) -> StoreState:
        """Returns a snapshot of all lines: their serving versions, histories and projects.

        Raises:
            DamagedVersionError: it cannot be read.
        """
        return self._parse(self.files.state())

    def _card(self, version_id: str, state: StoreState | None, line: str | None = None) -> VersionCard:
        """A card with its status in a line; default: its own line."""
        card = VersionCard.from_json(self.files.card(version_id))
        card = replace(card, version_id=version_id)  # a card must not select another folder
        judged = state.judgement(version_id, card.line if line is None else line) if state else None
        return replace(card, status=judged.status, reason=judged.reason) if judged else card

    def _judged_card(self, version_id: str, line: str) -> VersionCard:
        if version_id == self.base_version:
            return self._base_card()
        return self._card(version_id, self.state(), line)

    def _base_card(self) -> VersionCard:
        return VersionCard(
            version_id=self.base_version,
            preset=self.preset,
            status="promoted",
            reason="base weights of the preset",
        )

    def _require_known(self, version_id: str) -> None:
        if self._number(version_id) is None or not self.files.has(version_id):
            known = ", ".join([self.base_version, *self._published_ids()])
            raise UnknownVersionError(f"no version {version_id!r} of {self.preset}; there are: {known}")

    def _published_ids(self) -> builtins.list[str]:
        return [name for name in self.files.names() if self._number(name) is not None]

    def _number(self, version_id: str) -> int | None:
        digits = version_id.removeprefix(f"{self.preset}-")
        is_number = digits.isdecimal() and len(digits) <= MOST_DIGITS
        return int(digits) if version_id != digits and is_number else None

    def _next_id(self) -> str:
        """The lowest unused number above all numbers ever assigned."""
        state = self._state_or_none() or self._parse(None)
        seen = self._published_ids()
        for line in state.every_line():
            seen += [*(entry.version_id for entry in line.history), *line.judgements]
        number = 1 + max((self._number(version_id) or 0 for version_id in seen), default=0)
        return f"{self.preset}-{number:0{_ID_DIGITS}d}"

    def _judged(self, state: LineState, version_id: str, status: Status, reason: str) -> LineState:
        return state if version_id == self.base_version else state.judge(version_id, status, reason)

    def _state_or_none(self) -> StoreState | None:
        """None if unreadable: cards are then shown as published."""
        try:
            return self.state()
        except DamagedVersionError:
            return None

    def _parse(self, text: str | None) -> StoreState:
        if text is None:
            return StoreState(LineState(self.base_version), model_lines=self.model_lines)
        return StoreState.from_json(text, self.files.state_place, self.model_lines)

    def _change(self, line: str, change: Callable[[LineState], LineState]) -> StoreState:
        """Changes the version that serves a line, which no longer follows the default version."""
        return self.change_state(lambda state: state.with_line(line, change(state.line(line))))

    def change_state(self, change: Callable[[StoreState], StoreState]) -> StoreState:
        """Replaces the state by the function's result, which may be asked for more than once."""
        made: builtins.list[StoreState] = []

        def change_text(text: str | None) -> str:
            made.append(change(self._parse(text)))
            return made[-1].to_json()

        self.files.change_state(change_text)
        return made[-1]

    @cached_property
    def frozen_weights(self) -> dict[str, str]:
        """The weights that versions must have been trained on: file name -> sha256, computed on first use."""
        from sspsam.checkpoints.bundles import frozen_weights

        return frozen_weights(self.preset, self.weights)
