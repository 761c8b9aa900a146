"""A function that an attacker would like to be called."""

CALLED: list[str] = []


def called(*args: object) -> None:
    """Leaves a trace."""
    CALLED.append("called")
