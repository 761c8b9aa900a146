"""Changes of which projects a line of versions serves: sharing a line, leaving it, starting from another's
version, and the end of a project.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from functools import partial

from sspsam.version_store.cards import VersionCard, VersionStateError
from sspsam.version_store.lines import SHARED_LINE, StoreState, line_of_project, project_of_line
from sspsam.version_store.store import VersionStore

ADOPTED = "adopted"
"""Field of `VersionCard.data`: the version of another line that this one is a copy of."""
MOST_LETTERS = 64
"""Of the name of a line."""
_NAME = re.compile(rf"[a-z][a-z0-9-]{{0,{MOST_LETTERS - 2}}}[a-z0-9]")


def group_name(projects: Collection[int]) -> str:
    """Default name of the line that projects share."""
    return "projects-" + "-".join(str(project) for project in sorted(set(projects)))


def adopt(store: VersionStore, line: str, source: str) -> VersionCard:
    """Makes a line continue with the version that serves another.

    The line gets its own version, with the same tensors and without the other's reports; its parent is
    the other's version.

    Returns:
        The card of the version that serves the line now.

    Raises:
        VersionStateError: it is the same line.
        DamagedVersionError, ForeignVersionError, UnreachableStoreError: the version cannot be read.
    """
    if line == source:
        raise VersionStateError(f"{line} cannot adopt its own version")
    version_id = store.current(source)
    reason = f"adopted from {source or 'the default version'}"
    if version_id in (store.base_version, store.current(line)):
        return store.promote(version_id, reason, line)
    original = store.get(version_id)
    copy = VersionCard(
        line=line,
        parent=version_id,
        parents_sha256=original.parents_sha256,
        data={ADOPTED: version_id},
        config=original.config,
        code_version=original.code_version,
    )
    copied = store.publish(
        store.load(version_id), copy, {}, published=lambda: _copy_of(store, version_id, line)
    )
    return store.promote(copied.version_id, reason)


def _copy_of(store: VersionStore, version_id: str, line: str) -> VersionCard | None:
    copies = (card for card in store.list(line) if card.line == line)
    return next((card for card in copies if card.data.get(ADOPTED) == version_id), None)


def share(store: VersionStore, projects: Collection[int], name: str = "", source: str | None = None) -> str:
    """Makes projects share a line; it starts with the version that serves one of their lines.

    Args:
        store: The store.
        projects: Projects to share the line, or to join an existing one.
        name: Name of the line; default: `group_name`.
        source: The line whose version it starts with; default: that of the first project with a version of
            its own. A line that projects share already goes on with its own version.

    Returns:
        The name of the line.

    Raises:
        VersionStateError: all projects share one already, the name is not possible, there are fewer than two
            projects, or one of them shares another line.
    """
    state = store.state()
    name = checked_name(state, projects, name)
    members = _checked_members(state, projects, name)
    if name not in state.groups:
        adopt(store, name, _first_with_own(state, projects) if source is None else source)

    def shared(now: StoreState) -> StoreState:
        groups = {**now.groups, name: _checked_members(now, members, name)}
        former = {line: gone for line, gone in now.former.items() if line != name or name in now.groups}
        return replace(now, groups=groups, retired=now.retired - {name}, former=former)

    store.change_state(shared)
    return name


def checked_name(state: StoreState, projects: Collection[int], name: str = "") -> str:
    """The name of the line that projects are to share.

    Raises:
        VersionStateError: as `share`.
    """
    line = name or group_name(projects)
    if not name and len(line) > MOST_LETTERS:
        raise VersionStateError(f"{line} is too long for the name of a line: choose one with --name")
    _checked_members(state, projects, line)
    return line


def unshare(store: VersionStore, projects: Collection[int]) -> None:
    """Makes projects leave the lines that they share; each continues with a copy of what serves it.

    Raises:
        VersionStateError: one of them shares none.
    """
    state = store.state()
    for project in projects:
        if state.line_of(project) not in state.groups:
            raise VersionStateError(f"project {project} shares no line of its own choice")
    for project in projects:
        adopt(store, line_of_project(project), state.line_of(project))
        store.change_state(partial(_without, project=project))


def retire(store: VersionStore, project: int) -> None:
    """Ends the line of a deleted project: prune removes its versions. A shared line goes on for others.

    A project without versions, and in no group, leaves no trace: callers can name any number of them.
    """
    line, state = line_of_project(project), store.state()
    is_known = line in state.lines or _without(state, project) != state
    if not is_known and all(card.line != line for card in store.list(line)):
        return

    def retired(state: StoreState) -> StoreState:
        after = _without(state, project)
        gone = {line_of_project(project), *(state.groups.keys() - after.groups.keys())}
        former = dict(state.former)
        if (shared := state.line_of(project)) in state.groups:
            former[shared] = tuple(sorted({*former.get(shared, ()), project}))
        return replace(after, retired=state.retired | gone, former=former)

    store.change_state(retired)


def restore(store: VersionStore, project: int) -> None:
    """Keeps the line of a project after all, and its place among those that share one."""
    if line_of_project(project) in store.state().retired:
        store.change_state(partial(_with, project=project))


def _checked_members(state: StoreState, projects: Collection[int], name: str) -> tuple[int, ...]:
    if state.model_lines == SHARED_LINE:
        raise VersionStateError("all projects share one line already (MODEL_LINES=shared)")
    if not _NAME.fullmatch(name) or name == SHARED_LINE or project_of_line(name) is not None:
        raise VersionStateError(
            f"{name!r} cannot name a line: use 2 to 64 lower-case letters, digits and hyphens, beginning "
            f"with a letter, other than {SHARED_LINE!r} and a project's line"
        )
    members = tuple(sorted({*state.groups.get(name, ()), *projects}))
    if len(members) < 2:
        raise VersionStateError("a line is shared by two projects or more")
    for project in projects:
        if (line := state.line_of(project)) in state.groups and line != name:
            raise VersionStateError(f"project {project} shares {line}: `sspsam versions unshare` first")
    return members


def _first_with_own(state: StoreState, projects: Collection[int]) -> str:
    lines = [line_of_project(project) for project in projects]
    return next((line for line in lines if state.stored_line(line).version_id), lines[0])


def _with(state: StoreState, project: int) -> StoreState:
    """Takes back that a project was deleted."""
    after = replace(state, retired=state.retired - {line_of_project(project)})
    shared = next((name for name, projects in state.former.items() if project in projects), None)
    if shared is None:
        return after
    members = tuple(sorted({*state.groups.get(shared, ()), project}))
    others = tuple(member for member in state.former[shared] if member != project)
    return replace(
        after,
        groups={**state.groups, shared: members},
        former={**state.former, shared: others},
        retired=after.retired - {shared},
    )


def _without(state: StoreState, project: int) -> StoreState:
    groups = {
        name: tuple(member for member in members if member != project)
        for name, members in state.groups.items()
    }
    return replace(state, groups={name: members for name, members in groups.items() if members})
