"""gemma2, glm4, smollm3, phi3 and bitnet against their NumPy forms: random files with their options."""

import numpy as np
import pytest
import tiny_llama
from gguf_writer import write
from reference_relatives import REFERENCES
from sessions import session

from ikpy_llm.errors import ModelFileError

TOKENS = np.random.default_rng(4).integers(0, tiny_llama.N_VOCAB, 140).tolist()
EXACT, CODES = 4e-4, 0.05  # of the logits' deviation, on average: f16 cache, and activations of 8 bits

MATRICES = "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"


def model(architecture, head_dim=32, n_layer=4, **more):
    """(metadata, shapes) of a tiny model; scales: matrices have a factor of their own, as llama.cpp's BitNet files."""
    factors, scales = more.pop("factors", False), more.pop("scales", False)
    m = tiny_llama.meta(architecture=architecture, head_dim=head_dim, n_layer=n_layer, **more)
    shapes = tiny_llama.shapes(m, tied=architecture in ("gemma2", "smollm3"), bias=architecture == "glm4")
    n, n_ff = m[architecture + ".embedding_length"], m[architecture + ".feed_forward_length"]
    for i in range(n_layer):
        b, own = f"blk.{i}.", {}
        if architecture in ("gemma2", "glm4"):
            own = {"post_attention_norm": (n,), "post_ffw_norm": (n,)}
        if architecture.startswith("bitnet"):
            own = {"attn_sub_norm": (4 * head_dim,), "ffn_sub_norm": (n_ff,)}
        if architecture in ("glm4", "phi3"):
            for name in ("gate.weight", "gate.bias", "up.bias", "down.bias"):
                shapes.pop(f"{b}ffn_{name}", None)
            shapes[b + "ffn_up.weight"] = (2 * n_ff, n)
        if architecture == "phi3":
            for x in "qkv":
                del shapes[f"{b}attn_{x}.weight"]
            own = {"attn_qkv": (8 * head_dim, n)}
        shapes |= {f"{b}{name}.weight": shape for name, shape in own.items()}
        if scales:
            shapes |= {f"{b}{name}.scale": (1,) for name in MATRICES}
    if factors:
        shapes |= {f"rope_factors_{x}.weight": (head_dim // 2,) for x in ("short", "long")}
    return m, shapes


WINDOW = {"attention__sliding_window": 24}
LONGROPE = {
    "factors": True,
    "rope__scaling__type": "longrope",
    "rope__scaling__original_context_length": 256,
    "rope__scaling__attn_factor": 1.2,
    "rope__scaling__factor": None,
}
CASES = {
    "gemma2": ("gemma2", WINDOW, "F32"),
    "gemma2, own limits": ("gemma2", {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}, "F16"),
    "gemma2, 8 bits": ("gemma2", WINDOW, "Q8_0"),
    "glm4": ("glm4", {"rope__dimension_count": 16}, "F32"),
    "glm4, 8 bits": ("glm4", {}, "Q8_0"),
    "phi3": ("phi3", {}, "F32"),
    "phi3, window": ("phi3", WINDOW, "F32"),
    "phi3, short and long": ("phi3", LONGROPE, "F32"),
    "phi3, 8 bits": ("phi3", {}, "Q8_0"),
    "smollm3": ("smollm3", {}, "F32"),
    "bitnet": ("bitnet", {}, "F32"),
    "bitnet, scales": ("bitnet", {"scales": True}, "F32"),
    "bitnet-25, 4 bits": ("bitnet-25", {"n_embd": 96, "n_head": 4}, "Q4_0"),
    "bitnet-b1.58": ("bitnet-b1.58", {}, "F32"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("relatives")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(folder, case):
    architecture, options, kind = CASES[case]
    m, shapes = model(architecture, **options)
    path = write(folder / "case.gguf", m, tiny_llama.random(shapes, (kind,), 0))
    tolerance = CODES if kind.startswith("Q") else EXACT
    for n_ctx in (256, 512) if "factors" in options else (256,):
        reference = REFERENCES[architecture](path, np.float16)
        reference.n_ctx = n_ctx
        expected = reference.logits(TOKENS)
        with session(path, n_ctx=n_ctx) as s:
            got = s.eval(TOKENS, all_logits=True)
            s.rewind(0)
            np.testing.assert_array_equal(np.concatenate([s.eval([t]) for t in TOKENS[:40]]), got[:40])
        assert abs(got - expected).mean() < tolerance * expected.std()
        with session(path, n_ctx=n_ctx, threads=3, n_ubatch=33, no_fusion="all") as s:
            np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), got)


REFUSED = {
    "gemma2": ("attn_logit_softcapping", -1.0, "0 to"),
    "glm4": ("final_logit_softcapping", 30.0, "accepted: 0.0"),
    "phi3": ("rope.scaling.type", "su", "accepted: none, linear, yarn"),
    "smollm3": ("attention.sliding_window", 128, "accepted: 0"),
    "bitnet": ("expert_count", 4, "accepted: 0"),
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_metadata_that_would_be_run_wrongly_is_refused(folder, architecture):
    key, value, why = REFUSED[architecture]
    m, shapes = model(architecture)
    path = write(folder / "bad.gguf", m | {f"{architecture}.{key}": value}, tiny_llama.random(shapes, ("F32",), 0))
    with pytest.raises(ModelFileError, match=why) as error:
        session(path)
    assert key in str(error.value)
