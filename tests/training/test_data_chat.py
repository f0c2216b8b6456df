"""Which tokens of a chat or a completion count: what the assistant says, and no more."""

from __future__ import annotations

import json
import re
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import DEEPSEEK, GEMMA, LLAMA3, MISTRAL, PHI3, QWEN2, SMOLLM2, ZEPHYR
from llmcore.tokenizer import Tokenizer
from llmcore.training import Corpus, Documents, tokenize_chats, tokenize_completions
from llmcore.training.data.chat import ChatEncoder

SPECIAL = (
    "<|end_of_text|> <|begin|> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
    "[INST] [/INST] <|user|> <|system|> <|assistant|> <|end|> <start_of_turn> <end_of_turn> <|User|> "
    "<|Assistant|> <|end_of_sentence|>"
)
ROLES = {"bos_token": "<|begin|>", "eos_token": "<|end_of_text|>"}

SPACED = PHI3.replace("+ '<|end|>", "+ '\n<|end|>")

# What ends a turn, and what the template itself writes before the answer after its generation prompt.
END_OF_TURN = {
    SMOLLM2: "<|im_end|>", LLAMA3: "<|eot_id|>", QWEN2: "<|im_end|>", PHI3: "<|end|>", GEMMA: "<end_of_turn>",
    MISTRAL: "<|end_of_text|>", SPACED: "\n<|end|>",
}  # fmt: skip
BEFORE = {MISTRAL: " "}
TRIMMED = {LLAMA3, GEMMA}

ENDING = (
    "{{% for m in messages %}}{{{{ m.content }}}}{{% if {} %}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
)
QWEN3 = """{% for message in messages %}
{%- if message.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One that has merged newlines and spaces with what stands beside them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "user\nassistant\n\nHello  there, and\n\n\nall of you. " * 5
    Tokenizer.train([text], 320, special_tokens=SPECIAL.split(" "), progress=False).save(
        folder / "tokenizer.json"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(ROLES))
    return Tokenizer.from_folder(folder)


SYSTEM = {"role": "system", "content": "Be brief."}


def user(content: str) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **rest: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **rest}


CHAT = [user("x"), assistant("y")]


def said(tokenizer: Tokenizer, ids: list[int], counted: np.ndarray) -> list[str]:
    """The texts of the runs of ids that count."""
    runs = groupby(zip(ids, counted.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([id for id, _ in run]) for counts, run in runs if counts]


FRAGMENTS = st.sampled_from(["Hello", " ", "\n", "\n\n", "there", "é", "🦀", "<|im_end|>", "<|end", "a", "."])
CONTENT = st.lists(FRAGMENTS, max_size=6).map("".join)


@pytest.mark.parametrize("template", END_OF_TURN, ids=lambda template: END_OF_TURN[template])
@settings(max_examples=60)
@given(contents=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), trailing=st.booleans())
def test_what_counts_spells_what_the_assistant_says(
    tokenizer: Tokenizer, template: str, contents: list[tuple[str, str]], trailing: bool
) -> None:
    messages = [message for question, answer in contents for message in (user(question), assistant(answer))]
    messages += [user("and then?")] * trailing
    ids, counted = ChatEncoder(tokenizer, template).encode(messages)
    answers = [answer.strip() if template in TRIMMED else answer for _, answer in contents]
    expected = [BEFORE.get(template, "") + answer + END_OF_TURN[template] for answer in answers]
    assert said(tokenizer, ids, counted) == expected
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert tokenizer.decode(ids) == text
    if not any((answer + END_OF_TURN[template]).startswith(("\n", " ")) for answer in answers):
        assert ids == tokenizer.apply_chat_template(messages, chat_template=template)


def test_no_token_reaches_into_an_answer(tokenizer: Tokenizer) -> None:
    """As when the model is asked, which sees the ids of the prompt, and writes the rest."""
    question, answer = [user("x")], "\n\nHello"
    prompt = tokenizer.apply_chat_template(question, chat_template=SMOLLM2, add_generation_prompt=True)
    ids, counted = ChatEncoder(tokenizer, SMOLLM2).encode([*question, assistant(answer)])
    assert ids[: len(prompt)] == prompt
    assert ids != tokenizer.apply_chat_template([*question, assistant(answer)], chat_template=SMOLLM2)
    assert said(tokenizer, ids, counted) == [answer + "<|im_end|>"]


def test_smollm2(smollm2_path: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(smollm2_path)
    path = tmp_path / "chats.jsonl"
    chats = [
        [SYSTEM, user("Hi"), assistant("Hello."), user("Bye"), assistant("")],
        [user("<|im_end|>"), assistant("\n\nAn <|im_end|> is no end.\n")],
    ]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n\n" for messages in chats))
    corpus = tokenize_chats(path, tokenizer)
    assert len(corpus) == 2 and corpus.counted is not None
    turns = [["Hello.<|im_end|>", "<|im_end|>"], ["\n\nAn <|im_end|> is no end.\n<|im_end|>"]]
    for i, messages in enumerate(chats):
        part = slice(*corpus.starts[i : i + 2])
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(corpus.ids[part]) == text
        assert said(tokenizer, corpus.ids[part].tolist(), corpus.counted[part]) == turns[i]
    assert corpus.ids[: corpus.starts[1]].tolist() == tokenizer.apply_chat_template(chats[0])
    example = Documents(corpus)[0]
    counted = corpus.counted[: corpus.starts[1]]
    assert example["labels"][0].tolist() == np.where(counted, example["input_ids"][0], -100).tolist()


def test_calls_of_tools_count(tokenizer: Tokenizer) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        user("1 + 1"), assistant(None, tool_calls=[call]), {"role": "user", "content": "2"}, assistant("Two"),
    ]  # fmt: skip
    ids, counted = ChatEncoder(tokenizer, QWEN2).encode(messages, tools=[{"name": "add"}])
    # The template writes the call without the new line of its generation prompt.
    calls = QWEN2.replace("'\\n<tool_call>", "'<tool_call>").replace(
        "+ message.role }}", "+ message.role + '\\n' }}"
    )
    ids, counted = ChatEncoder(tokenizer, calls).encode(messages, tools=[{"name": "add"}])
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert said(tokenizer, ids, counted) == [written, "Two<|im_end|>"]


def test_what_the_template_marks(tokenizer: Tokenizer) -> None:
    messages = [user("x"), assistant("Hello"), user("y"), assistant("</s>")]
    ids, counted = ChatEncoder(tokenizer, ZEPHYR).encode(messages)
    ends = "<|end_of_text|>"
    assert said(tokenizer, ids, counted) == [f"<|assistant|>\n{text}{ends}" for text in ("Hello", "</s>")]
    content = "{% generation %}{{ message.content }}{% endgeneration %}"
    template = "{% for message in messages %}: " + content + "{{ eos_token }}{% endfor %}"
    ids, counted = ChatEncoder(tokenizer, template).encode([assistant("Hi"), assistant("there")])
    assert said(tokenizer, ids, counted) == ["Hi", "there"]  # not " there"


def test_an_answer_written_otherwise_when_it_is_the_last(tokenizer: Tokenizer) -> None:
    messages = [user("x"), assistant("Hello"), user("y"), assistant("Bye")]
    ids, counted = ChatEncoder(tokenizer, QWEN3).encode(messages)
    last = "<think>\n\n</think>\n\nBye<|im_end|>"
    assert said(tokenizer, ids, counted) == ["Hello<|im_end|>", last]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        # The system prompt moves to the last question.
        (MISTRAL, [SYSTEM, *CHAT], "messages[2]: found a template that writes"),
        (DEEPSEEK, CHAT, "messages[1]: found a template that writes"),
        ("{{ messages[0].content }}", CHAT, "found no special token after what the assistant says"),
        (SMOLLM2, CHAT[:1], "messages: found nothing that the assistant says"),
        (SMOLLM2, [], "messages: found nothing"),
        (SMOLLM2, [{"content": "x"}], "messages[0]: found None as the role"),
        (
            ENDING.format("loop.length == 3"),
            CHAT,
            "messages: found no end of the turn of answer 1 of the assistant, expected '<|end_of_text|>'",
        ),
        (
            ENDING.format("not loop.first"),
            [assistant("y"), assistant("z")],
            "messages: found no end of the turn of answer 1 of the assistant, expected '<|end_of_text|>'",
        ),
    ],
)
def test_turns_that_cannot_be_found(
    tokenizer: Tokenizer, template: str, messages: list, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ChatEncoder(tokenizer, template).encode(messages)


# ---------------------------------------------------------------------------------------------------
# Corpora of rows


def parts(corpus: Corpus) -> list[tuple[list[int], list[bool]]]:
    assert corpus.counted is not None
    bounds = corpus.starts.tolist()
    return [(corpus.ids[a:b].tolist(), corpus.counted[a:b].tolist()) for a, b in pairwise(bounds)]


def test_rows_of_chats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tool = {"name": "add"}
    rows = [
        {"messages": [user("x"), assistant("y") | {"tool_calls": None}], "tools": None, "id": 7},
        {"messages": [user("x"), assistant("y")], "tools": [tool]},
    ]
    corpus = tokenize_chats(rows, tokenizer, chat_template=QWEN2, cache=tmp_path)
    encoder = ChatEncoder(tokenizer, QWEN2)
    expected = [encoder.encode(row["messages"], tools=row["tools"]) for row in rows]
    assert parts(corpus) == [(ids, counted.tolist()) for ids, counted in expected]
    assert parts(corpus)[0] != parts(corpus)[1]
    # What `datasets` writes for a key that a row lacks is left out.
    asks = SMOLLM2.replace(
        "message['content']", "(message.tool_calls is defined) | string + message['content']"
    )
    chat = parts(tokenize_chats(rows[:1], tokenizer, chat_template=asks, cache=tmp_path))
    text = tokenizer.decode(chat[0][0])
    assert text.count("False") == 2 and "True" not in text
    folders = set(tmp_path.iterdir())
    tokenize_chats(rows, tokenizer, chat_template=QWEN2, cache=tmp_path)
    assert set(tmp_path.iterdir()) == folders
    tokenize_chats(rows, tokenizer, chat_template=QWEN2, cache=tmp_path, enable_thinking=False)
    tokenize_chats(rows, tokenizer, chat_template=SMOLLM2, cache=tmp_path)
    tokenize_chats(rows[:1], tokenizer, chat_template=SMOLLM2, cache=tmp_path)
    assert len(set(tmp_path.iterdir())) == len(folders) + 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": "x"}', "line 2: found {'messages': 'x'}, expected an object with a list \"messages\""),
        ("{", "line 2: found Expecting property name"),
        ('{"messages": [], "tools": "x"}', 'and perhaps a list "tools"'),
        ('{"messages": [5]}', "line 2: messages[0]: found int, expected a dict"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: messages: found nothing"),
        ('{"messages": [{"role": "assistant", "content": 5}]}', "line 2: chat template, line 4: TypeError"),
    ],
)
def test_a_wrong_chat_is_named(tokenizer: Tokenizer, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + line)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        tokenize_chats(path, tokenizer, chat_template=SMOLLM2)
    assert str(path) in str(caught.value)


def test_a_chat_needs_a_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat_template: found none"):
        tokenize_chats([], tokenizer, cache=tmp_path)
    with pytest.raises(ValueError, match=r"a name that ends in '.txt', expected '.jsonl'"):
        (tmp_path / "a.txt").write_text("x")
        tokenize_chats(tmp_path / "a.txt", tokenizer, chat_template=SMOLLM2)


@settings(max_examples=20)
@given(rows=st.lists(st.tuples(CONTENT, CONTENT).filter(any), min_size=1, max_size=9))
def test_only_the_completion_counts(
    tokenizer: Tokenizer, tmp_path_factory, rows: list[tuple[str, str]]
) -> None:
    data = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    corpus = tokenize_completions(data, tokenizer, cache=tmp_path_factory.mktemp("cache"))
    for (prompt, completion), (ids, counted) in zip(rows, parts(corpus), strict=True):
        assert tokenizer.decode(ids) == prompt + completion + "<|end_of_text|>"
        assert said(tokenizer, ids, np.array(counted)) == [completion + "<|end_of_text|>"]
        # One text, or, where a token would reach across, two.
        whole = tokenizer.encode(prompt + completion, allowed_special="none")
        apart = [tokenizer.encode(text, allowed_special="none") for text in (prompt, completion)]
        assert ids[:-1] in (whole, apart[0] + apart[1])


def test_completions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "<|user|>", "answer": "Hello<|end|>"}\n')
    options = {"prompt": "question", "completion": "answer", "cache": tmp_path / "cache"}
    [(ids, counted)] = parts(tokenize_completions(path, tokenizer, **options))
    assert said(tokenizer, ids, np.array(counted)) == ["Hello<|end|><|end_of_text|>"]
    assert tokenizer.token_to_id("<|end|>") not in ids
    [(ids, counted)] = parts(tokenize_completions(path, tokenizer, **options, allowed_special="all"))
    assert ids[0] == tokenizer.token_to_id("<|user|>") and ids[-2:] == [12, 0]
    with pytest.raises(ValueError, match=r'line 1: found .* expected an object with the strings "prompt"'):
        tokenize_completions(path, tokenizer)
    with pytest.raises(ValueError, match=r"row 0: found .* expected an object with the strings"):
        tokenize_completions([{"prompt": "x", "completion": 5}], tokenizer, cache=tmp_path)
    with pytest.raises(ValueError, match="allowed_special: found 'some'"):
        tokenize_completions(path, tokenizer, allowed_special="some")
