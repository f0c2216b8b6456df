"""The names of Transformers: a script that uses them runs with its import changed.

    from llmcore import GPT2LMHeadModel, GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
    model = GPT2LMHeadModel.from_pretrained("gpt2")
    input_ids = tokenizer.encode("I love programming", return_tensors="pt")
    output = model.generate(input_ids, max_length=50, num_return_sequences=5)
    print(tokenizer.decode(output[0]))

Names, defaults and the layout of results follow Transformers 5. What differs: each row of a batch is computed
as if it were alone and unpadded, several sequences may be asked for without naming beams or sampling, and an
argument that has no effect here is an error that names it. Torch is not needed; where tensors come in,
tensors go out.
"""

from llmcore.hf.models import AutoModelForCausalLM, CausalLM, GPT2LMHeadModel, LlamaForCausalLM
from llmcore.hf.options import GenerationConfig
from llmcore.hf.outputs import CausalLMOutput, GenerateOutput, ModelOutput
from llmcore.hf.tokenizers import AutoTokenizer, BatchEncoding, GPT2Tokenizer, PreTrainedTokenizer

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BatchEncoding",
    "CausalLM",
    "CausalLMOutput",
    "GPT2LMHeadModel",
    "GPT2Tokenizer",
    "GenerateOutput",
    "GenerationConfig",
    "LlamaForCausalLM",
    "ModelOutput",
    "PreTrainedTokenizer",
]
