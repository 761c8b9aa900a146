"""The demo's photographs, with suggested phrases.

All six are distributed with scikit-image and free to use; `SOURCES` has what its documentation states.
"""

from pathlib import Path

from worker.local.demo_pictures import DemoPhrase, Picture

FOLDER = Path(__file__).parent / "photographs"
SOURCES = {
    "astronaut": "NASA, Great Images database: no known restrictions, released into the public domain",
    "cat": "Stefan van der Walt: CC0",
    "coffee": "Rachel Michetti, courtesy of Pikolo Espresso Bar: CC0",
    "rocket": "SpaceX: released in the public domain",
    "photographer": "Lav Varshney: CC0",
    "coins": "Brooklyn Museum Collection: no known copyright restrictions",
}
"""Name of the file -> author and licence."""
PHRASES = {
    "astronaut": ("the astronaut", "the flag on the left", "the model of a space shuttle", "the dog"),
    "cat": ("the cat", "the nose of the cat", "the eye on the left", "the bicycle"),
    "coffee": ("the white cup", "the spoon", "the red saucer", "the fork"),
    "rocket": ("the rocket", "the tower on the far left", "all towers", "the person"),
    "photographer": ("the man", "the tripod", "the man's coat", "the car"),
    "coins": ("all coins", "the coin at the top right", "the largest coin", "the key"),
}
"""Name of the file -> phrases; the last one fits nothing."""


def demo_photographs() -> list[Picture]:
    """The photographs, with phrases whose last one fits nothing."""
    return [
        Picture(
            FOLDER / f"{name}.jpg",
            None,
            (*(DemoPhrase(text, (0,)) for text in there), DemoPhrase(nothing, ())),
        )
        for name, (*there, nothing) in PHRASES.items()
    ]
