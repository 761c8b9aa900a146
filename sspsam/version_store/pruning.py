"""Removal of versions that are no longer needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from sspsam.version_store.cards import UnknownVersionError, VersionCard, VersionStateError
from sspsam.version_store.lines import LineState, StoreState
from sspsam.version_store.store import VersionStore

KEEP_LATEST = 5
"""Versions of each line that are always kept."""


@dataclass(frozen=True)
class PrunePlan:
    """A plan of removals."""

    removed: Mapping[str, int]
    """Version ID -> bytes that it takes."""
    kept: Mapping[str, str]
    """Version ID -> why it is kept."""
    leftovers: Mapping[str, int]
    """Leftovers of crashed writers: name -> bytes."""

    @property
    def bytes_freed(self) -> int:
        return sum(self.removed.values()) + sum(self.leftovers.values())


def plan_pruning(store: VersionStore, keep_latest: int = KEEP_LATEST) -> PrunePlan:
    """Plans removals: excludes pending versions and, in each line, the serving version, rollback targets, and
    the latest. Of lines whose projects were deleted, everything is removed.

    Args:
        store: Store of the versions.
        keep_latest: Number of newest versions of each line to keep in any case.

    Raises:
        ValueError: it is negative.
        DamagedVersionError: the store's state cannot be read, so it is unknown what is needed.
    """
    if keep_latest < 0:
        raise ValueError(f"expected a number of versions to keep, 0 or more, got {keep_latest}")
    state, cards = store.state(), store.list()[1:]
    needed = [card for card in cards if card.line not in state.retired]
    kept = _latest(needed, keep_latest) | _learned(needed)
    kept |= {card.version_id: "not judged yet" for card in needed if card.status == "candidate"}
    kept |= dict.fromkeys(_rollback_targets(state), "can be rolled back to")
    kept |= dict.fromkeys(_serving(state), "serves")
    removed = {card.version_id: _size_bytes(store, card) for card in cards if card.version_id not in kept}
    return PrunePlan(removed, kept, store.files.leftovers())


def _size_bytes(store: VersionStore, card: VersionCard) -> int:
    try:
        return store.files.size_bytes(card)
    except FileNotFoundError:  # removed meanwhile
        return 0


def _without_retired(state: StoreState) -> StoreState:
    """Lets retired lines follow the default version. Their histories stay: no ID is assigned twice."""
    ended = {
        name: replace(line, version_id="", stack=()) if name in state.retired else line
        for name, line in state.lines.items()
    }
    return replace(state, lines=ended)


def _latest(cards: Sequence[VersionCard], keep_latest: int) -> dict[str, str]:
    by_line: dict[str, list[str]] = {}
    for card in cards:
        by_line.setdefault(card.line, []).append(card.version_id)
    latest = (version_ids[max(0, len(version_ids) - keep_latest) :] for version_ids in by_line.values())
    return {version_id: "among the latest" for version_ids in latest for version_id in version_ids}


def _learned(cards: Sequence[VersionCard]) -> dict[str, str]:
    """The latest of each line tells which labels were learned: without it, they would be learned again."""
    newest = {_learner(card): card.version_id for card in cards if _learner(card)}
    return {
        version_id: f"the latest of {name}: records what was learned" for name, version_id in newest.items()
    }


def _learner(card: VersionCard) -> str:
    """Whose labels a version learned; empty if it learned none."""
    project = card.data.get("project")
    if project is None and "run" not in card.data:
        return ""
    return card.line or f"project {project}"


def _serving(state: StoreState) -> list[str]:
    return [line.version_id for line in _needed_lines(state) if line.version_id]


def _rollback_targets(state: StoreState) -> list[str]:
    return [version_id for line in _needed_lines(state) for version_id in line.stack]


def _needed_lines(state: StoreState) -> list[LineState]:
    return [state.default, *(line for name, line in state.lines.items() if name not in state.retired)]


def prune(store: VersionStore, plan: PrunePlan) -> None:
    """Carries out a plan.

    Raises:
        VersionStateError: one of its versions now serves, or is a rollback target.
    """
    if store.state().retired:
        store.change_state(_without_retired)
    for version_id in plan.removed:
        store.change_state(partial(_remove_unneeded, store, version_id))
    for name in plan.leftovers:
        with suppress(FileNotFoundError):  # another `prune` was faster
            store.files.remove_leftover(name)


def _remove_unneeded(store: VersionStore, version_id: str, state: StoreState) -> StoreState:
    """Removes a version. In folders the state is locked meanwhile, so it is not promoted after the check."""
    if version_id in (*_serving(state), *_rollback_targets(state)):
        raise VersionStateError(f"{version_id} is needed now: plan again")
    with suppress(UnknownVersionError, FileNotFoundError):  # another `prune` was faster
        store.files.remove(store.get(version_id))
    return state
