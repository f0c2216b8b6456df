"""Any merges, even such as no trainer makes: a piece has the ids that tokenizers and tiktoken give it."""

from __future__ import annotations

import base64

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from llmcore.tokenizer import Tokenizer

WHOLE = r"[\s\S]+"
"""The pattern of one piece."""


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Pairs of what earlier pairs made. Several may make the same token, and in any order: some need a merge
    of a later rank first, and some never happen."""
    tokens = list("abc")
    merges: list[tuple[str, str]] = []
    for left, right in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=30)):
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if len("".join(pair)) <= 40 and pair not in merges:
            merges.append(pair)
            tokens.append("".join(pair))
    if draw(st.booleans()):
        return draw(st.permutations(merges))
    return merges


letters = st.text("abc", min_size=1, max_size=12)
pieces = st.lists(
    st.one_of(
        st.builds(lambda unit, times, end: unit * times + end, letters, st.integers(1, 40), letters),
        st.lists(st.text("aab", min_size=30, max_size=90), max_size=3).map("".join),
        st.text("abc", max_size=60),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=400)
@given(merges=merge_lists(), texts=pieces, ignore_merges=st.booleans())
def test_merges_of_tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
    merges: list[tuple[str, str]],
    texts: list[str],
    ignore_merges: bool,
) -> None:
    vocab = {token: id for id, token in enumerate(dict.fromkeys(["a", "b", "c", *map("".join, merges)]))}
    theirs = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    path = tmp_path_factory.getbasetemp() / "merges.json"
    theirs.save(str(path))
    ours = Tokenizer.from_file(path)
    # Every text whole, and as parts of others.
    texts = [*texts, "".join(texts), texts[0] * 9 + texts[-1]]
    for text, encoding in zip(texts, theirs.encode_batch_fast(texts), strict=True):
        assert ours.encode(text) == encoding.ids, text
        assert ours.encode(text) == encoding.ids, text
        assert ours.encode(text, with_offsets=True)[0] == encoding.ids, text


@settings(max_examples=300)
@given(tokens=st.lists(st.text("abc", min_size=2, max_size=9), max_size=40, unique=True), texts=pieces)
def test_ranks_of_tiktoken(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str], texts: list[str]
) -> None:
    """Any strings as tokens, in any order: some cannot be reached, and are only found whole."""
    spelled = [*(bytes([byte]) for byte in range(256)), *map(str.encode, tokens)]
    ranks = {token: rank for rank, token in enumerate(spelled)}
    theirs = tiktoken.Encoding("any", pat_str=WHOLE, mergeable_ranks=ranks, special_tokens={})
    path = tmp_path_factory.getbasetemp() / "any.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for t, rank in ranks.items()))
    ours = Tokenizer.from_file(path, pattern=WHOLE)
    texts = [*texts, "".join(texts), texts[0] * 9 + texts[-1], *tokens]
    for text in texts:
        assert ours.encode(text) == theirs.encode_ordinary(text), text
        assert ours.encode_batch([text])[0].tolist() == theirs.encode_ordinary(text), text
