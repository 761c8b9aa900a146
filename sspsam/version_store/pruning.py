"""Removal of versions that are no longer needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sspsam.version_store.cards import VersionStateError
from sspsam.version_store.store import VersionStore

KEEP_LATEST = 5
"""States of versions that are always kept."""


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
    """Plans removals: excludes the serving version, rollback targets, pending versions, and the latest per
    project.

    Args:
        store: Store of the versions.
        keep_latest: Number of newest versions to keep in any case.

    Raises:
        ValueError: it is negative.
        DamagedVersionError: the store's state cannot be read, so it is unknown what is needed.
    """
    if keep_latest < 0:
        raise ValueError(f"expected a number of versions to keep, 0 or more, got {keep_latest}")
    state, cards = store.state(), store.list()[1:]
    kept = {card.version_id: "among the latest" for card in cards[len(cards) - keep_latest :]}
    newest = {card.data["project"]: card.version_id for card in cards if "project" in card.data}
    kept |= {
        version_id: f"the latest of project {project}: records what was learned"
        for project, version_id in newest.items()
    }
    kept |= {card.version_id: "not judged yet" for card in cards if card.status == "candidate"}
    kept |= dict.fromkeys(state.stack, "can be rolled back to") | {state.version_id: "serves"}
    removed = {card.version_id: store.files.size_bytes(card) for card in cards if card.version_id not in kept}
    return PrunePlan(removed, kept, store.files.leftovers())


def prune(store: VersionStore, plan: PrunePlan) -> None:
    """Carries out a plan.

    Raises:
        VersionStateError: one of its versions now serves, or is a rollback target.
    """
    for version_id in plan.removed:
        state = store.state()
        if version_id in (state.version_id, *state.stack):
            raise VersionStateError(f"{version_id} is needed now: plan again")
        store.files.remove(store.get(version_id))
    for name in plan.leftovers:
        store.files.remove_leftover(name)
