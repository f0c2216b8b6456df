"""Strings that look for trouble, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

SNIPPETS = [
    "I love programming", " the", "'s", "'LL", "'ſ", "don't", "  ", "   x", "\n", "\r\n", "\t", " \n ",
    "\u00a0", "\u2003", "\u0085", "12345", "٣٤", "½", "Ⅷ", "e\u0301", "é", "ﬁ", "ẞ", "İ", "ǅ",
    "漢字", "かな", "한국어",
    "ह\u093fन\u094dद\u0940", "עברית", "🙂", "👩\u200d👩\u200d👧", "🇩🇪", "\u200b", "\ufeff", "\0", "\x7f", "�",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "▁", "Ġ", "<0x41>", "http://a.b/c?d=e&f",
    "aaaaaaaa", "_x", "!!!", "...", "/*", "-", "\u0378", "\U0001fae8", "\U000e0001",
]  # fmt: skip

snippets = st.lists(st.sampled_from(SNIPPETS), max_size=8).map("".join)
ascii_text = st.text(st.characters(max_codepoint=0x7F), max_size=16)
any_text = st.text(max_size=10)
texts = st.one_of(snippets, ascii_text, any_text)

batches = st.lists(texts, min_size=100, max_size=100, unique=True)
"""A hundred strings an example, so that tens of thousands take seconds."""
