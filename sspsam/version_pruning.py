"""Removing versions that nobody needs any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sspsam.version_cards import VersionStateError
from sspsam.versions import VersionStore

KEEP_LATEST = 5
"""Versions that stay, whatever became of them."""


@dataclass(frozen=True)
class PrunePlan:
    """What could go."""

    removed: Mapping[str, int]
    """Version id -> bytes that it takes."""
    kept: Mapping[str, str]
    """Version id -> why it stays."""
    leftovers: Mapping[str, int]
    """What writers that crashed have left: name -> bytes."""

    @property
    def bytes_freed(self) -> int:
        return sum(self.removed.values()) + sum(self.leftovers.values())


def plan_pruning(store: VersionStore, keep_latest: int = KEEP_LATEST) -> PrunePlan:
    """Says what could go: not what serves, can be rolled back to, is not judged, or tells what was learned.

    Args:
        store: Of the versions.
        keep_latest: So many of the newest stay in any case.

    Raises:
        ValueError: it is negative.
        DamagedVersionError: the state of the store cannot be read, so nothing tells what is needed.
    """
    if keep_latest < 0:
        raise ValueError(f"expected a number of versions to keep, 0 or more, got {keep_latest}")
    state, cards = store.state(), store.list()[1:]
    kept = {card.version_id: "among the latest" for card in cards[len(cards) - keep_latest :]}
    newest = {card.data["project"]: card.version_id for card in cards if "project" in card.data}
    kept |= {
        version_id: f"the latest of project {project}: tells what was learned"
        for project, version_id in newest.items()
    }
    kept |= {card.version_id: "not judged yet" for card in cards if card.status == "candidate"}
    kept |= dict.fromkeys(state.stack, "can be rolled back to") | {state.version_id: "serves"}
    removed = {card.version_id: store.files.size_bytes(card) for card in cards if card.version_id not in kept}
    return PrunePlan(removed, kept, store.files.leftovers())


def prune(store: VersionStore, plan: PrunePlan) -> None:
    """Removes what a plan says.

    Raises:
        VersionStateError: a version of it serves by now, or can be rolled back to.
    """
    for version_id in plan.removed:
        state = store.state()
        if version_id in (state.version_id, *state.stack):
            raise VersionStateError(f"{version_id} is needed by now: plan again")
        store.files.remove(store.get(version_id))
    for name in plan.leftovers:
        store.files.remove_leftover(name)
