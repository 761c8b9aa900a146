"""The words of the phrases that the demo weights are trained on."""

from __future__ import annotations

import re
from string import Formatter

from finetune.data.stickers import sentences
from finetune.data.stickers.colours import COLOURS
from finetune.data.stickers.vocabulary import Kind, nouns
from finetune.data.stickers.wording import rules
from finetune.data.stickers.wording.synonyms import SYNONYMS, all_words

_WORD = re.compile(r"[a-z][a-z'-]*[a-z]")
_FIELD = re.compile(r"\{[^{}]*\}")
_TEMPLATE_WORDS = "of all object objects last that are and a an furthest far isn't not six seven eight"


def known_words(*, wordings: bool = True) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of things, some of several words, and the other words, both sorted.

    Args:
        wordings: Whether the training contained wordings, not only template phrases.
    """
    learned = nouns("core", "base")
    words = [word for word in all_words() if isinstance(word, Kind) or word.name in learned]
    names = {name for word in words for name in (word.name, word.plural)} | {
        "object",
        "objects",
    }
    texts = [literal for template in sentences.TEMPLATES for literal, *_ in Formatter().parse(template)]
    texts += [option for options in sentences.FILLERS.values() for option in options]
    texts += [*COLOURS, _TEMPLATE_WORDS]
    if wordings:
        names |= {synonym for noun in learned for synonym in SYNONYMS.get(noun, ())}
        texts += [*rules.ONE_FRAMES, *rules.SEVERAL_FRAMES]
        texts += [wording for _, wordings_of in rules.RULES for wording in wordings_of]
        texts += ["single pair these those both row starting counting seen number together plus well one"]
    found = set(_WORD.findall(_FIELD.sub(" ", " ".join(texts).lower())))
    return tuple(sorted(names)), tuple(sorted(found - names))
