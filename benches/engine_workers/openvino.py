"""OpenVINO by optimum-intel, in the loops of Transformers."""

from __future__ import annotations

from functools import partial

import openvino
import optimum.intel
import transformers

from engine_workers import Engine
from engine_workers.openvino_options import options, said
from engine_workers.transformers_search import generate

transformers.logging.set_verbosity_error()


def load(file: str, precision: str, threads: int) -> Engine:
    chosen = options(precision, threads)
    model = optimum.intel.OVModelForCausalLM.from_pretrained(file, ov_config=chosen)
    compiled = model.request.get_compiled_model()
    executed = {
        key: getattr(value := compiled.get_property(key), "get_type_name", lambda: value)() for key in chosen
    }
    versions = f"OpenVINO {openvino.get_version().split('-')[0]}, Transformers {transformers.__version__}"
    return Engine(f"{versions} by optimum-intel; {said(executed)}", partial(generate, model))
