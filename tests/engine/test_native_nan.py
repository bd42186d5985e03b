"""A model that holds NaN gives NaN, on both paths: never a plausible number."""

import dataclasses

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.engine.native import NativeEngine
from miudo.formats.blocks import encode, to_f32
from miudo.formats.model_file import ModelFile
from miudo.tensors import DType, Role, StoredTensor, tensor_table

CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=32, n_heads=2, d_ff=32, vocab_size=64, max_positions=16
)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("capped", [False, True])
def test_nan_in_a_norm_reaches_the_scores(activations: str, capped: bool) -> None:
    caps = {"attn_softcap": 5.0, "logit_softcap": 5.0, "logit_scale": 2.0}
    config = dataclasses.replace(CONFIG, **caps) if capped else CONFIG
    decoder = Decoder(config)
    decoder.initialise(0)
    weights = dict(decoder.to_weights())
    for spec in tensor_table(config):
        if spec.role not in (Role.NORM, Role.BIAS):
            weights[spec.name] = encode(to_f32(weights[spec.name]), DType.Q8_0)
    broken = np.ones(32, dtype=np.float32)
    broken[5] = np.nan
    weights["norm.weight"] = StoredTensor.from_f32(broken)
    model = ModelFile(config, weights, None, None, None, "llama", None)
    scores = NativeEngine(model, threads=1, activations=activations).score([1, 2, 3])
    assert np.isnan(scores.logprobs).all()
