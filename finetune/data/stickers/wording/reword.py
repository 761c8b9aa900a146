"""Rewords template phrases: rules for their parts, synonyms, frames such as "where is", and noise."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from finetune.data.stickers.wording import rules
from finetune.data.stickers.wording.known import known_words
from finetune.data.stickers.wording.synonyms import SYNONYMS, all_words, name_forms, synonyms
from sspsam.phrases import token_ids, token_text

KEPT = 0.15
"""Probability that a phrase stays as in the template, but for noise."""
REWORDED = 0.75
"""Probability that its parts are reworded where a rule fits."""
FRAMED = 0.4
SYNONYM = 0.3
FILLED = 0.2
"""Probability of a word before the name, or behind the phrase, that has nothing to do with stickers."""
MISSPELLED = 0.12
"""Probability of a typing error in one of its words."""
FREQUENT_TOKENS = range(1000, 12000)
"""CLIP's tokens are ordered by frequency; the first are letters and parts of words."""
_FIRST_NAME = 0xE000
_ANY_NAME = "|".join(map(re.escape, sorted(name_forms(), key=len, reverse=True)))
_ORANGE = rf"(?!orange (?:{_ANY_NAME})\b)(?!(?<=that is )orange\b)(?!(?<=that are )orange\b)"
_NAMES = re.compile(rf"\b{_ORANGE}(?:{_ANY_NAME})\b")
"""Names in a phrase, longest first; the colour orange is no name."""
_SEVERAL = re.compile("(?:all|both|every|each|the (?:two|three|four|five|six|seven|eight)) ")
_NAME = re.compile(rules.NAME)
_IS = re.compile(r"\b(that|which) is\b")
_ARTICLE = re.compile("^(?:the|an?) (?!two|three|four|five|six|seven|eight)")


def reword(phrase: str, rng: np.random.Generator) -> str:
    """A wording of a template phrase with the same meaning.

    Args:
        phrase: From `finetune.data.stickers.phrases`, or a sentence of `finetune.data.stickers.sentences`.
        rng: Source of random choices.
    """
    words = _Rewording(phrase.lower(), rng)
    return words.noisy(words.phrase())


class _Rewording:
    def __init__(self, phrase: str, rng: np.random.Generator) -> None:
        self.rng = rng
        self.names: list[str] = []
        self.skeleton = _NAMES.sub(self._mark, phrase)

    def _mark(self, match: re.Match[str]) -> str:
        self.names.append(match[0])
        return chr(_FIRST_NAME + len(self.names) - 1)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def phrase(self) -> str:
        """The reworded phrase, still without noise."""
        if self.chance(KEPT):
            return self._named(self.skeleton)
        skeleton, several = self.skeleton, self._is_several()
        if self.chance(REWORDED):
            skeleton = self._several(skeleton) if several else self._one(skeleton)
        elif not several:
            skeleton = self._determined(_ARTICLE.sub("", skeleton))
        if self.chance(FILLED):
            skeleton = self._filled(skeleton)
        if self.chance(FRAMED):
            skeleton = self.pick(rules.SEVERAL_FRAMES if several else rules.ONE_FRAMES).format(skeleton)
        return " ".join(self._named(skeleton).split())

    def _filled(self, skeleton: str) -> str:
        """Adds a word that the model need not know: "the yummy peach", "eagle flying"."""
        name = _NAME.search(skeleton)
        if name is None or self.chance(0.3):
            return f"{skeleton} {self.pick(filler_words())}"
        return f"{skeleton[: name.start()]}{self.pick(filler_words())} {skeleton[name.start() :]}"

    def _is_several(self) -> bool:
        """Whether the phrase refers to several objects."""
        if rules.PAIR.match(self.skeleton) or _SEVERAL.match(self.skeleton):
            return True
        head = _NAME.search(self.skeleton)
        return (
            head is not None
            and name_forms()[self.names[ord(head[0]) - _FIRST_NAME]][1]
            and (" of the two " not in self.skeleton)
        )

    def _one(self, skeleton: str) -> str:
        bare = _ARTICLE.sub("", skeleton)
        ordinal = rules.ORDINAL.match(bare)
        if ordinal:
            return self._determined(self._plural(self.pick(rules.ordinals(ordinal)), ordinal["n"]))
        for pattern, wordings in rules.RULES:
            match = pattern.match(bare)
            if match:
                groups = match.groupdict()
                name = next(text for key, text in groups.items() if key[0] == "n" and text)
                said = self.pick(wordings).replace("{n}", name).replace("{a}", groups.get("a") or "")
                return self._determined(self._plural(said, name))
        return self._determined(bare)

    def _plural(self, said: str, name: str) -> str:
        """Fills in the plural of a name where a wording needs it."""
        if "{ns}" not in said:
            return said
        noun, _ = name_forms()[self.names[ord(name) - _FIRST_NAME]]
        self.names.append(_plurals()[noun])
        return said.replace("{ns}", chr(_FIRST_NAME + len(self.names) - 1))

    def _determined(self, bare: str) -> str:
        if bare.startswith(("on the ", "at the ", "from the ", "the ")):
            return bare
        determiner = self.pick(rules.DETERMINERS)
        if determiner == "a" and not _NAME.match(bare):
            determiner = "the"
        if determiner == "a" and self.names[0][0] in "aeiou":
            determiner = "an"
        return f"{determiner} {bare}"

    def _several(self, skeleton: str) -> str:
        pair = rules.PAIR.match(skeleton)
        if pair:
            joined = self.pick((
                "{} and {}", "{} & {}", "both {} and {}", "{} as well as {}", "{} plus {}",
                "{} together with {}",
                "{} + {}", "{}, {}", "{} and also {}",
            ))  # fmt: skip
            article = self.pick(("the ", "the ", "", "a "))
            return joined.format(article + pair["n"], article + pair["m"])
        match = rules.SEVERAL.match(skeleton)
        if match is None:
            return skeleton
        number, name, rest = match["number"].strip(), match["n"], self._placed(match["n"], match["rest"])
        digit = rules.NUMBERS.get(number, "")
        if match["all"] in ("every ", "each "):
            said = self.pick(
                ("every single {}", "each and every {}", "each {}", "every {}", "any {}", "every one {}")
            )
        elif number == "two" or match["all"] == "both ":
            said = self.pick((
                "both {}", "both of the {}", "both the {}", "the two {}", "two {}", "2 {}", "the 2 {}",
                "the pair of {}", "these two {}", "those two {}",
            ))  # fmt: skip
        elif number:
            said = self.pick((
                f"{digit} {{}}", f"{number} {{}}", f"all {digit} {{}}", f"all {number} {{}}",
                f"the {digit} {{}}",
                f"the {number} {{}}", f"all of the {number} {{}}", f"these {number} {{}}", "all {}",
            ))  # fmt: skip
        else:
            said = self.pick((
                "all of the {}", "all the {}", "all {}", "the {}", "{}", "every one of the {}",
                "each of the {}",
                "all of these {}", "these {}", "those {}", "all the {} you can find", "all the {} you see",
                "all {} in the picture", "all {} in the image", "any {}", "all {} here",
                "the {} (all of them)",
            ))  # fmt: skip
        return said.format(name) + rest

    def _placed(self, name: str, rest: str) -> str:
        """Rewords what follows the name, such as " on the left"."""
        for pattern, wordings in rules.RULES if rest else ():
            match = pattern.match(name + rest.replace("that are", "that is"))
            after = tuple(w.removeprefix("{n}") for w in wordings if w.startswith("{n}") and "{ns}" not in w)
            if match and after:
                said = self.pick(after).replace("{a}", match.groupdict().get("a") or "")
                return _IS.sub(r"\1 are", said).replace("that's", "that are").replace("the one ", "the ones ")
        return rest

    def _named(self, skeleton: str) -> str:
        text = ""
        for character in skeleton:
            place = ord(character) - _FIRST_NAME
            text += self._name(self.names[place]) if 0 <= place < len(self.names) else character
        return text

    def _name(self, name: str) -> str:
        noun, plural = name_forms()[name]
        others = synonyms(noun, plural)
        return self.pick(others) if others and self.chance(SYNONYM) else name

    def noisy(self, text: str) -> str:
        """Typing errors, case and punctuation."""
        if self.chance(MISSPELLED):
            text = self._misspelled(text)
        if self.chance(0.1):
            text = text.replace("'", "").replace("-", " ")
        if self.chance(0.06):
            text += self.pick((".", "?", "!", " ", "..", "?"))
        style = self.rng.random()
        if style < 0.75:
            return text
        if style > 0.96:
            return text.upper()
        return text[:1].upper() + text[1:] if style < 0.93 else text.title()

    def _misspelled(self, text: str) -> str:
        words = text.split(" ")
        long = [place for place, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
        if not long:
            return text
        place = long[int(self.rng.integers(len(long)))]
        words[place] = misspell(words[place], self.rng)
        return " ".join(words)


_NEIGHBOURS = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}


def misspell(word: str, rng: np.random.Generator) -> str:
    """A word with one typing error: a letter missing, doubled, replaced by a neighbouring key, or swapped."""
    place = int(rng.integers(1, len(word)))
    choice = rng.random()
    if choice < 0.3:
        return word[:place] + word[place + 1 :]
    if choice < 0.5:
        return word[:place] + word[place - 1] + word[place:]
    if choice < 0.75 or place + 1 == len(word):
        near = _NEIGHBOURS.get(word[place], word[place])
        return word[:place] + near[int(rng.integers(len(near)))] + word[place + 1 :]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


@cache
def filler_words() -> tuple[str, ...]:
    """Words of CLIP's vocabulary that neither name a sticker, not even a novel one, nor describe one."""
    names = {part for word in all_words() for form in (word.name, word.plural)
             for part in form.split()}  # fmt: skip
    names |= {part for words in SYNONYMS.values() for word in words for part in word.split()}
    described = {word for group in known_words() for phrase in group for word in phrase.split()}
    words = {token_text(token) for token in FREQUENT_TOKENS if token_ids(token_text(token)) == [token]}
    words = {word for word in words if len(word) > 3 and word.isalpha() and word.isascii()}
    return tuple(sorted(word for word in words if word.removesuffix("s") not in names | described))


@cache
def _plurals() -> dict[str, str]:
    return {word.name: word.plural for word in all_words()} | {"object": "objects"}
