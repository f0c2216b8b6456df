"""Which tokens of a conversation the assistant says, by the chat template of the checkpoint.

**What counts.** If the template marks what the assistant says (`{% generation %}`, as Transformers'
`return_assistant_tokens_mask` asks for), what it marks. Else each turn of the assistant: all that the
template writes after its own generation prompt (`add_generation_prompt=True`), up to the end-of-turn token,
that included. This is what the model itself must write when it answers: content, calls of tools, and the
token that ends its turn. White space after that token does not count.

The ids are those of `apply_chat_template`, but that no token reaches from the prompt into the answer
(`cuts.py`). So the labels spell what the assistant says, and nothing else.

The end-of-turn token is learnt from the template: the first special token that it writes between what the
assistant says and what the user answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.chat import render_chat
from llmcore.tokenizer import Tokenizer
from llmcore.training.data.cuts import encode_cut
from llmcore.trust import Tracked, marks, spans

__all__ = ["ChatEncoder"]

_HINT = "mark what the assistant says with {% generation %} … {% endgeneration %} in a chat_template="

# A conversation to learn the end-of-turn token from. The words survive trimming, and stand nowhere in a
# template.
_ANSWER, _REPLY = "Zwetschgenanswer", "Zwetschgenreply"
_PROBE = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _REPLY},
]


class ChatEncoder:
    """Encodes conversations, and finds what the assistant says in them.

    Args:
        tokenizer: The checkpoint's.
        chat_template: Jinja source that replaces the checkpoint's.

    Raises:
        ValueError: there is no template.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        template = chat_template or tokenizer.chat_template
        if not template:
            raise ValueError("chat_template: found none, expected one of the checkpoint, or chat_template=")
        self.tokenizer = tokenizer
        self.chat_template: str = template

    def encode(
        self, messages: Sequence[Mapping[str, object]], **variables: object
    ) -> tuple[list[int], NDArray[np.bool_]]:
        """The ids of a conversation, and which of them count: bool [ids].

        Raises:
            ValueError: the template refuses the conversation, or does not show where a turn of the assistant
                begins or ends; the assistant says nothing.
            TypeError: a message holds something else than plain data.
        """
        text = self._render(messages, **variables)
        marked = marks(text)
        starts = [start for start, _ in marked] or self._answers(text, messages, variables)
        if not starts:
            raise ValueError("messages: found nothing that the assistant says, expected a turn of it")
        ids, ends = encode_cut(self.tokenizer, text, starts)
        firsts = np.searchsorted(ends, starts, "right").tolist()
        if marked:
            stops = np.searchsorted(ends, [stop for _, stop in marked], "right").tolist()
        else:
            stops = self._ends_of_turns(ids, firsts)
        counted = np.zeros(len(ids), np.bool_)
        for first, stop in zip(firsts, stops, strict=True):
            counted[first:stop] = True
        return ids, counted

    def _answers(
        self, text: Tracked, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]
    ) -> list[int]:
        """Where in the text the answers of the assistant start: each where its prompt ends."""
        starts = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._render(messages[:i], add_generation_prompt=True, **variables)
                if not str.startswith(text, prompt):
                    found = "a template that writes what comes before an answer in another way to ask for it"
                    raise ValueError(f"messages[{i}]: found {found}, expected the same text; {_HINT}")
                starts.append(len(prompt))
        return starts

    def _ends_of_turns(self, ids: list[int], firsts: list[int]) -> list[int]:
        """Where in the ids the turns stop that start at `firsts`: after their end-of-turn tokens."""
        stops = []
        for i, (first, following) in enumerate(zip(firsts, [*firsts[1:], len(ids)], strict=True)):
            if self.end_of_turn not in ids[first:following]:
                token = self.tokenizer.id_to_token(self.end_of_turn)
                found = f"no end of the turn of answer {i + 1}"
                raise ValueError(f"messages: found {found} of the assistant, expected {token!r}; {_HINT}")
            stops.append(ids.index(self.end_of_turn, first) + 1)
        return stops

    @cached_property
    def end_of_turn(self) -> int:
        """The token with which the template ends a turn of the assistant.

        Raises:
            ValueError: it ends it with none.
        """
        text = self._render(_PROBE)
        ids, offsets = self.tokenizer.encode_spans(spans(text), with_offsets=True)
        special, answer, reply = set(self.tokenizer.special_ids), text.find(_ANSWER), text.find(_REPLY)
        for id, (start, end) in zip(ids, offsets, strict=True):
            if answer + len(_ANSWER) <= start and end <= reply and id in special:
                return id
        raise ValueError(
            "chat template: found no special token after what the assistant says, expected one that ends its "
            f"turn; {_HINT}"
        )

    def _render(self, messages: Sequence[Mapping[str, object]], **variables: Any) -> Tracked:
        return render_chat(self.tokenizer, messages, chat_template=self.chat_template, **variables)
