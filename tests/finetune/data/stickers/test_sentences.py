"""Sentences for text-only training: their subject matches their words."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.stickers.dataset import nouns
from finetune.data.stickers.sentences import FILLERS, TEMPLATES, Sentence, make_sentence, spoken_tokens
from finetune.data.stickers.vocabulary import kinds, vocabulary
from sspsam.phrases import token_ids, tokenize

NOUNS = nouns("core")


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    rng = np.random.default_rng(0)
    return [make_sentence(NOUNS, rng) for _ in range(400)]


def names_of(meant: tuple[str, ...]) -> set[str]:
    """The words that mean such nouns."""
    names = {"object", "objects"} if len(meant) == len(NOUNS) else set()
    names |= {word for kind in kinds() if set(meant) <= kind.members for word in (kind.name, kind.plural)}
    return names | ({meant[0], vocabulary()[meant[0]].plural} if len(meant) == 1 else set())


def test_the_head_comes_first_and_is_in_the_text(sentences: list[Sentence]) -> None:
    for sentence in sentences:
        assert sentence.mentions[0].nouns == sentence.head
        assert any(name in sentence.text for name in names_of(sentence.head)), sentence


def test_a_mention_ends_at_its_token(sentences: list[Sentence]) -> None:
    """The phrase cut behind that token ends with the name."""
    for sentence in sentences:
        whole = tokenize([sentence.text])[0]
        for mention in sentence.mentions:
            ends = [i for i in range(1, len(sentence.text) + 1) if _is_word_end(sentence.text, i)]
            cut = next(
                sentence.text[:end]
                for end in ends
                if int((tokenize([sentence.text[:end]])[0] != 0).sum()) - 3 == mention.token
            )
            assert any(cut.endswith(name) for name in names_of(mention.nouns)), (sentence, cut)
            cut_tokens = tokenize([cut])[0]
            assert cut_tokens[: mention.token + 1].tolist() == whole[: mention.token + 1].tolist()


def test_every_noun_and_kinds_are_spoken_of(sentences: list[Sentence]) -> None:
    heads = {sentence.head for sentence in sentences}
    assert {head[0] for head in heads if len(head) == 1} == set(NOUNS)
    assert any(1 < len(head) < len(NOUNS) for head in heads)
    assert tuple(NOUNS) in heads


def test_templates_use_known_fillers() -> None:
    known = {*FILLERS, "noun", "plural", "other", "others", "third"}
    for template in TEMPLATES:
        fields = {part.split("}")[0] for part in template.split("{")[1:]}
        assert fields <= known, template


def test_all_that_is_said_is_known(sentences: list[Sentence]) -> None:
    known = set(spoken_tokens(NOUNS))
    assert all(set(token_ids(sentence.text)) <= known for sentence in sentences)


def _is_word_end(text: str, end: int) -> bool:
    return end == len(text) or text[end] == " "
