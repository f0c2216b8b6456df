"""WordPiece, Unigram and WordLevel behind the face of `Tokenizer`: what the package `tokenizers` says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import texts
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from llmcore import _core
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizer_package import PackageTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*"abcdeloprtuvw,.'!", "the", "we", "program", "##ming", "##s", "##a", "##b", "##e", "##r", "love"]
PIECES = ["▁", "▁the", "▁we", "▁program", "ming", "s", "a", "b", "e", "▁love", *"lovprtuw,.'!"]


def wordpiece() -> tokenizers.Tokenizer:
    vocab = {token: id for id, token in enumerate(SPECIAL + WORDS)}
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(SPECIAL)
    return made


def unigram() -> tokenizers.Tokenizer:
    vocab = [(token, -float(i)) for i, token in enumerate(["<pad>", "</s>", "<unk>", *PIECES])]
    made = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_0>"])
    return made


def wordlevel() -> tokenizers.Tokenizer:
    vocab = {token: id for id, token in enumerate(["[UNK]", "the", "love"])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[UNK]"])
    return made


MADE = {"WordPiece": wordpiece, "Unigram": unigram, "WordLevel": wordlevel}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, tokenizers.Tokenizer]]:
    folder = tmp_path_factory.mktemp("package")
    pairs = {}
    for name, make in MADE.items():
        theirs, path = make(), folder / f"{name}.json"
        theirs.save(str(path))
        pairs[name] = (Tokenizer.from_file(path), theirs)
    return pairs


some_text = st.lists(st.sampled_from([*WORDS, " ", "[SEP]", "</s>", "programming", "é"]), max_size=12).map(
    "".join
)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=100)
@given(batch=st.lists(texts | some_text, max_size=5), n=st.integers(2, 9))
def test_the_face_says_what_the_package_says(
    both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], name: str, batch: list[str], n: int
) -> None:
    ours, theirs = both[name]
    expected = [theirs.encode(text) for text in batch]
    flat, starts = ours.encode_batch(batch, flat=True)
    rows = ours.encode_batch(batch)
    assert starts.tolist() == np.cumsum([0, *(len(encoding.ids) for encoding in expected)]).tolist()
    for i, (text, encoding) in enumerate(zip(batch, expected, strict=True)):
        assert ours.encode(text) == encoding.ids == rows[i].tolist() == ours.encode(text.encode())
        assert ours.encode_array(text).tolist() == flat[starts[i] : starts[i + 1]].tolist() == encoding.ids
        assert ours.encode(text, with_offsets=True) == (encoding.ids, encoding.offsets)
        assert ours.count(text) == len(encoding.ids)
        for skip in (False, True):
            decoded = theirs.decode(encoding.ids, skip_special_tokens=skip)
            assert ours.decode(encoding.ids, skip) == decoded
            assert ours.decode_bytes(np.array(encoding.ids, np.int64), skip) == decoded.encode()
        beginning = ours.truncate(text, n)
        assert text.startswith(beginning) and ours.count(beginning) <= n
        assert beginning == text or ours.count(text) > n


def test_names_ids_and_roles(both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], tmp_path: Path) -> None:
    ours, theirs = both["WordPiece"]
    assert (ours.vocab_size, len(ours)) == (theirs.get_vocab_size(), theirs.get_vocab_size())
    for token, id in theirs.get_vocab().items():
        assert (ours.token_to_id(token), ours.id_to_token(id)) == (id, token)
    assert (ours.prefix_ids, ours.suffix_ids, ours.special_ids) == ([2], [3], [0, 1, 2, 3])
    assert ours.token_bytes(theirs.token_to_id("##ming")) == b"ming"
    assert isinstance(ours, PackageTokenizer)
    # Roles, and tokens that the settings add, come as for any tokenizer.
    theirs.save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.pad_token_id, ours.unk_token_id, ours.eos_token_ids, ours.bos_token_id) == (0, 1, [3], None)
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json", special_tokens=["[NEW]", "love"])
    new = ours.token_to_id("[NEW]")
    assert new == theirs.get_vocab_size()
    assert ours.encode("[NEW]love", add_special_tokens=False) == [new, ours.token_to_id("love")]
    assert ours.decode([new, 2], skip_special_tokens=True) == ""


def test_added_tokens_are_found_where_they_are_allowed(
    both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    ours, _ = both["Unigram"]
    extra, end = ours.token_to_id("<extra_0>"), 1
    text = "we<extra_0></s>"
    assert {extra, end} < set(ours.encode(text, add_special_tokens=False))
    only = ours.encode(text, add_special_tokens=False, allowed_special=["<extra_0>"])
    assert extra in only and end not in only
    assert not {extra, end} & set(ours.encode(text, add_special_tokens=False, allowed_special="none"))
    with pytest.raises(ValueError, match="allowed_special: found 'some'"):
        ours.encode(text, allowed_special="some")
    trusted = ours.encode_spans([("we", False), ("</s>", True)])
    assert trusted == ours.encode("we</s>", add_special_tokens=False)
    assert ours.encode_spans([("we</s>", False), ("</s>", True)], add_special_tokens=True).count(end) == 2
    for spans in ([("we ", False), ("love</s>", True)], [("love</s>", False), ("</s>", True)]):
        ids, offsets = ours.encode_spans(spans, with_offsets=True, add_special_tokens=True)
        assert ids == ours.encode_spans(spans, add_special_tokens=True)
        assert len(offsets) == len(ids) and offsets[-1] == (0, 0)
        joined = "".join(text for text, _ in spans)
        assert joined[slice(*offsets[-2])] == "</s>"


def test_streams_of_unigram(both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]]) -> None:
    ours, _ = both["Unigram"]
    ids = ours.encode("we love programming", add_special_tokens=False)
    decoder = ours.stream_decoder()
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == "we love programming" == ours.decode(ids)
    with pytest.raises(ValueError, match="found 'WordPiece'"):
        both["WordPiece"][0].stream_decoder()


def test_files_are_encoded(both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], tmp_path: Path) -> None:
    ours, _ = both["WordPiece"]
    path = tmp_path / "a.txt"
    path.write_text("we love\nprogramming")
    assert ours.encode_file(path).tolist() == ours.encode("we love\nprogramming")
    lines = [*ours.encode("we love"), 0, *ours.encode("programming"), 0]
    assert ours.encode_file(path, documents="lines", separator=0).tolist() == lines


def test_nothing_of_the_base_encodes() -> None:
    """The base knows no WordPiece, so that what it did with a text would be wrong."""
    face = {name for name in vars(_core.Tokenizer) if not name.startswith("_")}
    kept = {
        "token_to_id",
        "id_to_token",
        "token_bytes",
        "vocab_size",
        "special_ids",
        "embedded_chat_template",
    }
    roles = {"bos_token_id", "eos_token_id", "eos_token_ids", "pad_token_id", "unk_token_id"}
    assert face - kept - roles <= set(vars(PackageTokenizer))


def test_without_the_package_its_name_is_said(
    both: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    both["WordPiece"][1].save(str(path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"WordPiece needs .*llmcore-cpu\[tokenizers\]"):
        Tokenizer.from_file(path)


def test_a_file_that_is_not_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model": {"type": "WordPiece", "vocab": 3}}')
    with pytest.raises(ValueError, match=r"tokenizer.json: found .*, expected a tokenizer.json"):
        Tokenizer.from_file(path)
