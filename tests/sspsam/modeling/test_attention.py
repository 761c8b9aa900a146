"""Our attention against PyTorch's, and our bidirectional GRU against PyTorch's, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sspsam
from sspsam.modeling.attention import attend
from sspsam.modeling.clip import TextFeatures
from sspsam.phrases import tokenize

PHRASES = ["the dog", "the second of the three small brown dogs from the left", "dogs"]


@pytest.mark.parametrize("same", ["all", "queries and keys", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_pytorchs(same: str, masked: bool, bias: bool) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True)
    queries, values = torch.randn(3, 7, 32), torch.randn(3, 7, 32)
    keys = torch.randn(3, 7, 32) if same == "none" else queries
    values = queries if same == "all" else values
    read = torch.rand(7, 7) < 0.5
    read[:, 0] = True
    expected, _ = stock(queries, keys, values, attn_mask=~read if masked else None)
    found = attend(stock, queries, keys, values, read if masked else None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_forgets_in_training_alone() -> None:
    stock = nn.MultiheadAttention(32, 4, dropout=0.5, batch_first=True)
    rows = torch.randn(1, 9, 32)
    once, again = attend(stock, rows, rows, rows), attend(stock, rows, rows, rows)
    assert not torch.equal(once, again)
    stock.eval()
    torch.testing.assert_close(attend(stock, rows, rows, rows), stock(rows, rows, rows)[0])


@pytest.mark.parametrize("learning", [False, True])
def test_phrases_are_read_as_the_whole_gru_reads_them(learning: bool) -> None:
    torch.manual_seed(0)
    model = sspsam.build_model("ssp-sam-test").train(learning)
    adapter, tokens = model.linguistic_adapter, tokenize(PHRASES)
    words = torch.randn(*tokens.shape, model.preset.clip.text_width, requires_grad=learning)
    found = adapter(TextFeatures(words, torch.randn(len(words), 8)), tokens)

    projected = adapter.word_projection(words)
    scores = adapter.attention_score(adapter.gru(projected)[0]).squeeze(-1)
    attention = scores.masked_fill(tokens == 0, -torch.inf).softmax(dim=-1)
    phrase = torch.einsum("bl,bld->bd", attention, projected)

    torch.testing.assert_close(found.attention, attention, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.phrase, phrase, rtol=1e-4, atol=1e-5)
    if learning:
        gradients = [torch.autograd.grad(one.square().sum(), words)[0] for one in (found.phrase, phrase)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
