"""The models of Transformers' names: batches of token ids to logits and to continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from llmcore import hub
from llmcore.hf.arrays import Wrap, ids_batch, mask_batch, real_rows, to_numpy, wrap_like
from llmcore.hf.options import GenerationConfig, merge
from llmcore.hf.outputs import CausalLMOutput, GenerateOutput
from llmcore.hf.search import infer_mask, search
from llmcore.hf.tokenizers import PreTrainedTokenizer
from llmcore.loading import load
from llmcore.model import Model

__all__ = ["AutoModelForCausalLM", "CausalLM", "GPT2LMHeadModel", "LlamaForCausalLM"]

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.float32]

# Sites, by the names that every decoder of `llmcore.models` gives them.
_EMBEDDINGS, _LAYERS, _NORM = "embed", "layers.*", "norm"
_PROBABILITIES = "layers.*.attn.probs"


class Config(SimpleNamespace):
    """What config.json says, and the defaults of the architecture for what it leaves out."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


class CausalLM:
    """A language model under its name in Transformers. `from_pretrained` makes one.

    Token ids are lists, NumPy arrays or torch tensors, `[batch, time]` (or one sequence alone); tensors in
    give tensors out, all else arrays. Each row of a batch is computed as if it were alone and unpadded: its
    real tokens, those under a mask of 1, count their positions from 0, wherever the padding is.

    Attributes:
        model: The model that computes, a `llmcore.Model`.
        config: The configuration, with the fields of config.json.
        generation_config: The checkpoint's options of `generate`; may be changed.
    """

    model_type: ClassVar[str | None] = None

    def __init__(self, model: Model) -> None:
        self.model = model
        checkpoint = model.checkpoint
        self.config = Config(
            **{
                **checkpoint.config_json,
                **dataclasses.asdict(checkpoint.config),
                "model_type": checkpoint.model_type,
            }
        )
        self.generation_config = GenerationConfig.of_checkpoint(checkpoint.generation)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Any = "auto",
        torch_dtype: Any = None,
        kv_cache_dtype: str = "auto",
        device_map: str | None = None,
        attn_implementation: str | None = None,
        local_files_only: bool = False,
        low_cpu_mem_usage: bool | None = None,
        use_safetensors: bool | None = None,
        trust_remote_code: bool | None = None,
        threads: int | None = None,
    ) -> CausalLM:
        """Loads a model.

        Args:
            source: As for `llmcore.load`: a folder, a `.gguf` file, a hub id, or a short name.
            dtype: What weights are kept in, as for `llmcore.load`, or `torch.float32` or `torch.bfloat16`.
            torch_dtype: The older name of `dtype`; wins if given.
            kv_cache_dtype: What keys and values are kept in, as for `llmcore.load`.
            device_map: None, "auto" or "cpu": there is one device.
            attn_implementation: None, "eager" or "sdpa", which compute the same.
            local_files_only: Whether the network is left alone.
            low_cpu_mem_usage: Either value: weights are always read piece by piece.
            use_safetensors: None or True: pickles are never read.
            trust_remote_code: Either value: code of a checkpoint is never run.
            threads: At most so many threads for each call; all of the process's processors unless given.

        Raises:
            FileNotFoundError: nothing is found under the name, or it lacks a file that is needed.
            ValueError: a file that is not what it claims to be, an architecture that is not supported or not
                this class's, or an argument out of range.
            TypeError: an unknown argument.
        """
        _one_of("device_map", device_map, (None, "auto", "cpu"))
        _one_of("attn_implementation", attn_implementation, (None, "eager", "sdpa"))
        _one_of("use_safetensors", use_safetensors, (None, True))
        wanted = str(torch_dtype or dtype or "auto").removeprefix("torch.")
        path = hub.resolve(source, download=not local_files_only)
        model = load(path, dtype=wanted, kv_cache_dtype=kv_cache_dtype, threads=threads)
        found = model.checkpoint.model_type
        if cls.model_type not in (None, found):
            raise ValueError(
                f"{model.checkpoint.path}: found model_type {found!r}, "
                f"expected {cls.model_type!r} for {cls.__name__} (AutoModelForCausalLM takes any)"
            )
        return _CLASSES.get(found, CausalLM)(model)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
        use_cache: bool | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """The logits after each token, and what passes through the layers.

        Args:
            input_ids: `[batch, time]`.
            attention_mask: `[batch, time]`: 1 for each real token, 0 for padding on either side; all are real
                unless given.
            output_hidden_states: Whether `hidden_states` are returned.
            output_attentions: Whether `attentions` are returned.
            return_dict: False gives a tuple of the same.
            use_cache: Either value: each call computes all of its tokens, and returns no keys and values.

        Returns:
            A `CausalLMOutput`: float32, zeros at positions under a mask of 0.

        Raises:
            ValueError: rows of unequal lengths, a mask of another shape, a row without a real token, an id
                outside of the vocabulary, or more tokens than `model.max_positions`.
            TypeError: an unknown argument.
        """
        wrap = wrap_like(input_ids, attention_mask)
        ids = ids_batch(input_ids)
        mask = mask_batch(attention_mask, ids)
        capture = [_EMBEDDINGS, _LAYERS, _NORM] if output_hidden_states else []
        capture += [_PROBABILITIES] if output_attentions else []
        rows = [self.model.forward(row, capture) for row in real_rows(ids, mask)]
        output = CausalLMOutput(wrap(_spread([logits for logits, _ in rows], mask)))
        paths = list(rows[0][1])
        probabilities = [path for path in paths if path.endswith(".probs")]
        if output_hidden_states:
            streams = [path for path in paths if path not in probabilities]
            # The last layer is seen after the final norm, and not before it.
            del streams[-2]
            output.hidden_states = tuple(wrap(_spread([seen[p] for _, seen in rows], mask)) for p in streams)
        if output_attentions:
            squares = ([seen[path] for _, seen in rows] for path in probabilities)
            output.attentions = tuple(wrap(_spread_square(each, mask)) for each in squares)
        return output if return_dict else output.to_tuple()

    __call__ = forward

    def generate(
        self,
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        stopping_criteria: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        *,
        attention_mask: Any = None,
        tokenizer: PreTrainedTokenizer | None = None,
        inputs: Any = None,
        **options: Any,
    ) -> Any:
        """Continues prompts.

        Args:
            input_ids: Prompts, `[batch, time]`; the `bos_token_id` alone unless given.
            generation_config: Options, over those of `self.generation_config`.
            logits_processor: One or several of `processor(ids, scores) -> scores`, after those that the
                options ask for: `ids [1, length]` without padding, `scores [1, vocab_size]`
                (log-probabilities in a beam search).
            stopping_criteria: One or several of `criterion(ids, None)`, true or `[True]` for `ids` of shape
                `[1, length]` that are to end.
            attention_mask: `[batch, time]`: 1 for each real token, 0 for padding. Unless given, tokens equal
                to `pad_token_id` are padding, if that is set and ends no sequence.
            tokenizer: Makes the text that `stop_strings` are looked for in; the checkpoint's unless given.
            inputs: Another name of `input_ids`.
            **options: See `GenerationConfig`. Greedy search for 20 tokens unless they or a config say more.

        Returns:
            `[batch * num_return_sequences, length]`, int64: the prompts as they were given, padding included,
            each with its continuation, filled up with `pad_token_id` after the end; with
            `return_dict_in_generate=True` a `GenerateOutput`.

        Raises:
            ValueError: an unknown option or one out of range, a prompt without a real token or too long, an
                id outside of the vocabulary.
        """
        settings = merge((self.generation_config, generation_config), options)
        input_ids = inputs if input_ids is None else input_ids
        wrap = wrap_like(input_ids, attention_mask)
        if input_ids is None:
            if "bos_token_id" not in settings:
                raise ValueError("input_ids: found none, expected them, or a bos_token_id to begin with")
            input_ids = [settings["bos_token_id"]]
        ids = ids_batch(input_ids)
        mask = infer_mask(ids, settings) if attention_mask is None else mask_batch(attention_mask, ids)
        output = search(
            self.model,
            ids,
            mask,
            settings,
            [_processor(call, wrap) for call in _several(logits_processor)],
            [_criterion(call, wrap) for call in _several(stopping_criteria)],
            None if tokenizer is None else tokenizer.core,
        )
        if not settings.get("return_dict_in_generate"):
            return wrap(output.sequences)
        return GenerateOutput(
            **{
                name: tuple(map(wrap, value)) if isinstance(value, tuple) else wrap(value)
                for name, value in output.items()
            }
        )

    @property
    def device(self) -> str:
        """Where the model computes: "cpu"."""
        return "cpu"

    def to(self, device: Any) -> CausalLM:
        """The model itself, which stays where it is.

        Raises:
            ValueError: another device than "cpu".
        """
        _one_of("device", str(device), ("cpu",))
        return self

    def eval(self) -> CausalLM:
        """The model itself, which only ever evaluates."""
        return self

    def num_parameters(self) -> int:
        """How many numbers the model holds; a tied head counts once."""
        count: int = self.model.info()["parameters"]
        return count


class GPT2LMHeadModel(CausalLM):
    """GPT-2 with its head (Radford et al. 2019); see `CausalLM`."""

    model_type = "gpt2"


class LlamaForCausalLM(CausalLM):
    """Llama with its head (Touvron et al. 2023); see `CausalLM`."""

    model_type = "llama"


class AutoModelForCausalLM(CausalLM):
    """Any architecture that llmcore has: `from_pretrained` gives the class that fits."""


_CLASSES: dict[str, type[CausalLM]] = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(repr, allowed))}")


def _spread(rows: Sequence[Rows], mask: Mask) -> Rows:
    """The rows of each sequence's real tokens in `[batch, time, width]`, zeros elsewhere."""
    if len(mask) == 1 and mask.all():
        return rows[0][None]
    spread = np.zeros((*mask.shape, rows[0].shape[-1]), np.float32)
    for target, real, values in zip(spread, mask, rows, strict=True):
        target[real] = values
    return spread


def _spread_square(squares: Sequence[Rows], mask: Mask) -> Rows:
    """Each sequence's `[heads, tokens, tokens]` in `[batch, heads, time, time]`, zeros elsewhere."""
    batch, time = mask.shape
    spread = np.zeros((batch, len(squares[0]), time, time), np.float32)
    for target, real, values in zip(spread, mask, squares, strict=True):
        target[:, np.outer(real, real)] = values.reshape(len(values), -1)
    return spread


def _several(calls: Callable[..., Any] | Sequence[Callable[..., Any]] | None) -> list[Callable[..., Any]]:
    """None, one callable, or several. (Transformers' lists of them are callable as well.)"""
    if calls is None:
        return []
    return list(calls) if isinstance(calls, Sequence) else [calls]


def _processor(call: Callable[..., Any], wrap: Wrap) -> Callable[[Ids, Rows], Rows]:
    """A processor of batches for a single sequence."""

    def process(ids: Ids, scores: Rows) -> Rows:
        changed: Rows = to_numpy(call(wrap(ids[None]), wrap(scores[None])))[0]
        return changed

    return process


def _criterion(call: Callable[..., Any], wrap: Wrap) -> Callable[[Ids], bool]:
    """A criterion of batches for a single sequence."""
    return lambda ids: bool(to_numpy(call(wrap(ids[None]), None)).all())
