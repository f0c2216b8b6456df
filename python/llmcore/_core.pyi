from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

__all__ = [
    "BpeTrainer",
    "Flat",
    "Generation",
    "Gguf",
    "Model",
    "SafeTensors",
    "StreamDecoder",
    "Tokenizer",
    "__version__",
    "activate",
    "activate_backward",
    "adamw_step",
    "add_row_sums",
    "add_to_rows",
    "attention",
    "attention_backward",
    "attention_rows",
    "attention_weights",
    "available_isas",
    "cross_entropy",
    "ema_swap",
    "ema_update",
    "gate",
    "gate_backward",
    "gguf_pre",
    "gguf_pre_name",
    "isa",
    "json_texts",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax",
    "matmul",
    "measure_limits",
    "parameters_of",
    "quantize",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "set_isa",
    "sgd_step",
    "softmax",
    "thread_count",
    "warp",
]
__version__: str

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def thread_count() -> int: ...
def quantize(x: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]: ...
def measure_limits(threads: int | None = None) -> tuple[float, float, float, float]: ...
def matmul(
    a: NDArray[np.float32],
    a_transposed: bool,
    b: NDArray[np.float32],
    b_transposed: bool,
    out: NDArray[np.float32],
    add: bool,
    bfloat16: bool,
) -> None: ...
def softmax(x: NDArray[np.float32]) -> None: ...
def log_softmax(x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def layer_norm(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    eps: float,
    out: NDArray[np.float32],
) -> None: ...
def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, out: NDArray[np.float32]
) -> None: ...
def activate(name: str, x: NDArray[np.float32]) -> None: ...
def gate(name: str, gate_up: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def rope(
    x: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    positions: NDArray[np.uint32],
) -> None: ...
def attention(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    window: int | None,
    kv_dtype: str,
    out: NDArray[np.float32],
) -> None: ...
def attention_weights(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    window: int | None,
    kv_dtype: str,
    scores: NDArray[np.float32],
    probs: NDArray[np.float32],
) -> None: ...
def cross_entropy(
    logits: NDArray[np.float32],
    labels: NDArray[np.int32],
    smoothing: float,
    scale: float,
    losses: NDArray[np.float32],
) -> None: ...
def layer_norm_backward(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    eps: float,
    dy: NDArray[np.float32],
    dx: NDArray[np.float32],
    dweight: NDArray[np.float32],
    dbias: NDArray[np.float32],
) -> None: ...
def rms_norm_backward(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    eps: float,
    dy: NDArray[np.float32],
    dx: NDArray[np.float32],
    dweight: NDArray[np.float32],
) -> None: ...
def activate_backward(name: str, x: NDArray[np.float32], dy: NDArray[np.float32]) -> None: ...
def gate_backward(
    name: str,
    gate_up: NDArray[np.float32],
    dout: NDArray[np.float32],
    dgate_up: NDArray[np.float32],
) -> None: ...
def rope_backward(
    dx: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    positions: NDArray[np.uint32],
) -> None: ...
def add_to_rows(dy: NDArray[np.float32], indices: NDArray[np.uint32], table: NDArray[np.float32]) -> None: ...
def add_row_sums(x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def attention_rows(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    spans: Sequence[Sequence[int]],
    scale: float,
    causal: bool,
    window: int | None,
    out: NDArray[np.float32],
    log_sums: NDArray[np.float32],
) -> None: ...
def attention_backward(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    spans: Sequence[Sequence[int]],
    scale: float,
    causal: bool,
    window: int | None,
    out: NDArray[np.float32],
    log_sums: NDArray[np.float32],
    dout: NDArray[np.float32],
    dq: NDArray[np.float32],
    dk: NDArray[np.float32],
    dv: NDArray[np.float32],
) -> None: ...

@final
class SafeTensors:
    def __new__(cls, path: str | PathLike[str]) -> SafeTensors: ...
    def metadata(self) -> dict[str, str]: ...
    def names(self) -> list[str]: ...
    def info(self, name: str) -> tuple[tuple[int, ...], str]: ...
    def read(self, name: str) -> NDArray[np.float32]: ...

@final
class Gguf:
    def __new__(cls, path: str | PathLike[str]) -> Gguf: ...
    def keys(self) -> list[str]: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def metadata(self) -> dict[str, Any]: ...
    def names(self) -> list[str]: ...
    def info(self, name: str) -> tuple[tuple[int, ...], str]: ...
    def read(self, name: str) -> NDArray[np.float32]: ...

@final
class BpeTrainer:
    def __new__(
        cls,
        vocab_size: int,
        pattern: str,
        *,
        special_tokens: Sequence[str] = ...,
        min_frequency: int = 0,
        min_piece_count: int = 1,
        max_memory: int | None = None,
    ) -> Self: ...
    def add_texts(self, texts: Sequence[str]) -> None: ...
    def add_file(
        self, path: str | PathLike[str], progress: Callable[[int], object] | None = None
    ) -> None: ...
    def finish(
        self, progress: Callable[[int], object] | None = None
    ) -> tuple[str, tuple[int, int, int, int]]: ...

@disjoint_base
class Tokenizer:
    def __new__(
        cls,
        path: str | PathLike[str],
        *,
        json: str | None = None,
        pattern: str | None = None,
        nfc: bool = False,
        added_tokens: Sequence[tuple[str, int | None, bool, bool, bool, bool, bool]] = ...,
        bos_token: str | int | None = None,
        eos_tokens: Sequence[str | int] = ...,
        unk_token: str | int | None = None,
        pad_token: str | int | None = None,
        assumed: Sequence[str] = ...,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
    ) -> Self: ...
    @overload
    def encode(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
        with_offsets: Literal[False] = False,
    ) -> list[int]: ...
    @overload
    def encode(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
        with_offsets: Literal[True],
    ) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode_array(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
    ) -> NDArray[np.uint32]: ...
    @overload
    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
        flat: Literal[False] = False,
    ) -> list[NDArray[np.uint32]]: ...
    @overload
    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
        flat: Literal[True],
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def truncate(
        self,
        text: str,
        n: int,
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
    ) -> str: ...
    def last_seam(self, text: bytes) -> int | None: ...
    @overload
    def encode_spans(
        self,
        spans: Sequence[tuple[str, bool]],
        *,
        add_special_tokens: bool = False,
        with_offsets: Literal[False] = False,
    ) -> list[int]: ...
    @overload
    def encode_spans(
        self,
        spans: Sequence[tuple[str, bool]],
        *,
        add_special_tokens: bool = False,
        with_offsets: Literal[True],
    ) -> tuple[list[int], list[tuple[int, int]]]: ...
    def count(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
    ) -> int: ...
    def decode(
        self, ids: int | Sequence[int] | NDArray[np.integer[Any]], skip_special_tokens: bool = False
    ) -> str: ...
    def decode_bytes(
        self, ids: int | Sequence[int] | NDArray[np.integer[Any]], skip_special_tokens: bool = False
    ) -> bytes: ...
    def stream_decoder(
        self, *, skip_special_tokens: bool = False, continuing: bool = False
    ) -> StreamDecoder: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def token_bytes(self, id: int) -> bytes: ...
    def __len__(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def unk_token_id(self) -> int | None: ...
    @property
    def prefix_ids(self) -> list[int]: ...
    @property
    def suffix_ids(self) -> list[int]: ...
    @property
    def special_ids(self) -> list[int]: ...
    @property
    def json(self) -> str | None: ...
    @property
    def embedded_chat_template(self) -> str | None: ...

def gguf_pre(path: str | PathLike[str], name: str | None) -> tuple[list[str], bool, bool]: ...
def gguf_pre_name(patterns: Sequence[str], nfc: bool, ignore_merges: bool) -> str | None: ...
def json_texts(lines: Sequence[bytes]) -> list[str | None]: ...

@final
class StreamDecoder:
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...

def parameters_of(description: str) -> list[tuple[str, list[int]]]: ...

@final
class Model:
    def __new__(
        cls,
        description: str,
        tensors: SafeTensors | Gguf,
        views: str,
        max_positions: int,
        threads: int | None = None,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        trainable: str | None = None,
    ) -> Model: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    def sites(self) -> list[str]: ...
    def parameters(self) -> list[tuple[str, list[int]]]: ...
    def weight_bytes(self) -> int: ...
    def matrix_bytes(self) -> list[tuple[str, int]]: ...
    def kv_bytes_per_position(self) -> int: ...
    def forward(
        self, sequences: list[NDArray[np.uint32]], capture: list[str] = ..., chunk: int = ...
    ) -> tuple[list[NDArray[np.float32]], dict[str, list[NDArray[np.float32]]]]: ...
    def token_logprobs(self, ids: NDArray[np.uint32]) -> NDArray[np.float32]: ...
    def tensors(self) -> list[tuple[str, list[int], int, bool]]: ...
    def tensor(self, name: str) -> NDArray[np.float32]: ...
    def lend(self, gradients: bool) -> NDArray[np.float32]: ...
    def give_back(self) -> None: ...
    def loss_and_grad(
        self,
        tokens: NDArray[np.uint32],
        lengths: list[int],
        labels: NDArray[np.int32],
        denominator: float,
        smoothing: float = 0.0,
        dropout: tuple[float, int, int, int] | None = None,
        checkpointing: bool = False,
    ) -> float: ...
    def evaluate(
        self, tokens: NDArray[np.uint32], lengths: list[int], labels: NDArray[np.int32]
    ) -> float: ...

@final
class Flat:
    def __new__(cls, len: int) -> Flat: ...
    def __len__(self) -> int: ...
    def lend(self) -> NDArray[np.float32]: ...
    def give_back(self) -> None: ...

_Group = tuple[int, int, float]

def adamw_step(
    model: Model,
    exp_avg: Flat,
    exp_avg_sq: Flat,
    groups: Sequence[_Group],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
    max_grad_norm: float | None,
) -> float: ...
def sgd_step(
    model: Model,
    momentum_buffer: Flat,
    groups: Sequence[_Group],
    lr: float,
    momentum: float,
    nesterov: bool,
    max_grad_norm: float | None,
) -> float: ...
def ema_update(model: Model, averages: Flat, groups: Sequence[_Group], decay: float) -> None: ...
def ema_swap(model: Model, averages: Flat) -> None: ...

_Logprobs = list[tuple[int, float, list[tuple[int, float]]]]
_FinishReason = Literal["stop", "length"]

def warp(
    scores: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> NDArray[np.float32]: ...

@final
class Generation:
    def __new__(
        cls,
        model: Model,
        requests: Sequence[tuple[Sequence[int], dict[str, Any]]],
        tokenizer: Tokenizer | None = None,
    ) -> Generation: ...
    def __iter__(self) -> Generation: ...
    def __next__(self) -> list[tuple[int, int, list[int], str, _Logprobs, _FinishReason | None]]: ...
    def run(self) -> None: ...
    def results(
        self,
    ) -> list[list[tuple[list[int], str | None, float | None, _Logprobs, _FinishReason]]]: ...
    def close(self) -> None: ...
