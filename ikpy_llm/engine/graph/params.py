"""Hyperparameters: GGUF metadata by name, with types and ranges.

A key that nobody reads is refused where some engine gives it a meaning that would change the result (known_keys.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ikpy_llm.engine.file import known_keys
from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.attention.layout import MAX_DIM
from ikpy_llm.kernels.moe.layout import MAX_EXPERTS

REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """One hyperparameter: key after `<architecture>.`, type, range, default (a value, or a function of Params)."""

    key: str
    type: type
    low: float
    high: float
    default: object = REQUIRED


# Upper bounds are far above any model; they keep products of two sizes within 64 bits before a tensor's shape is known.
_WIDTH = 1 << 22
KEYS = {
    "n_ctx_train": Key("context_length", int, 1, 1 << 31),
    "n_layer": Key("block_count", int, 1, 4096),
    "n_embd": Key("embedding_length", int, 1, _WIDTH),
    "n_ff": Key("feed_forward_length", int, 1, _WIDTH),
    "n_head": Key("attention.head_count", int, 1, 65536),
    "n_head_kv": Key("attention.head_count_kv", int, 1, 65536, lambda p: p.n_head),
    "head_dim": Key("attention.key_length", int, 1, MAX_DIM, lambda p: p.divided("n_embd", "n_head")),
    "v_dim": Key("attention.value_length", int, 1, MAX_DIM, lambda p: p.head_dim),
    "eps": Key("attention.layer_norm_rms_epsilon", float, 1e-30, 1.0),
    "n_rot": Key("rope.dimension_count", int, 0, 65536, lambda p: p.head_dim),
    "rope_base": Key("rope.freq_base", float, 1.001, 1e15, 10000.0),
    "rope_scaling": Key("rope.scaling.type", str, 0, 0, "linear"),  # of a factor without a type, as in llama.cpp
    "rope_factor": Key("rope.scaling.factor", float, 0, 1e6, 0.0),  # 0 = 1
    "rope_scale_linear": Key("rope.scale_linear", float, 0, 1e6, 0.0),  # the name old files use
    "rope_n_ctx": Key("rope.scaling.original_context_length", int, 1, 1 << 31, lambda p: p.n_ctx_train),
    "rope_attn_factor": Key("rope.scaling.attn_factor", float, 1e-3, 1e3, None),
    "yarn_mix": Key("rope.scaling.yarn_ext_factor", float, -1, 1, 1.0),  # below 0: what is usual
    "yarn_attn_factor": Key("rope.scaling.yarn_attn_factor", float, 1e-3, 1e3, None),
    "yarn_fast": Key("rope.scaling.yarn_beta_fast", float, 1e-3, 1e6, 32.0),
    "yarn_slow": Key("rope.scaling.yarn_beta_slow", float, 1e-3, 1e6, 1.0),
    "window": Key("attention.sliding_window", int, 0, 1 << 31, 0),
    "rope_base_window": Key("rope.freq_base_swa", float, 1.001, 1e15, 10000.0),
    "n_expert": Key("expert_count", int, 0, MAX_EXPERTS, 0),
    "n_expert_used": Key("expert_used_count", int, 0, MAX_EXPERTS, 0),
    "n_ff_expert": Key("expert_feed_forward_length", int, 1, _WIDTH, lambda p: p.divided("n_ff", "n_expert_used")),
    "n_ff_shared": Key("expert_shared_feed_forward_length", int, 1, _WIDTH, lambda p: p.n_ff),
    "n_expert_shared": Key("expert_shared_count", int, 0, 1024, 0),
    "expert_gating": Key("expert_gating_func", int, 0, 16, 0),  # 0: what is usual for the architecture
    "expert_scale": Key("expert_weights_scale", float, 0, 1e3, 0.0),  # 0 = 1
    "expert_norm": Key("expert_weights_norm", bool, 0, 1, None),  # None: what is usual for the architecture
    "n_expert_group": Key("expert_group_count", int, 0, MAX_EXPERTS, 0),
    "n_expert_group_used": Key("expert_group_used_count", int, 0, MAX_EXPERTS, 0),
    "n_dense": Key("leading_dense_block_count", int, 0, 4096, 0),
    "n_nextn": Key("nextn_predict_layers", int, 0, 4096, 0),
    "kv_rank": Key("attention.kv_lora_rank", int, 1, _WIDTH),
    "q_rank": Key("attention.q_lora_rank", int, 0, _WIDTH, 0),  # 0 = q comes from one matrix
    "k_dim_mla": Key("attention.key_length_mla", int, 1, MAX_DIM, lambda p: p.head_dim),
    "v_dim_mla": Key("attention.value_length_mla", int, 1, MAX_DIM, lambda p: p.v_dim),
    "yarn_log_mul": Key("rope.scaling.yarn_log_multiplier", float, 0, 10, 0.0),
    "act": Key("hidden_activation", str, 0, 0, ""),
    "attention_cap": Key("attn_logit_softcapping", float, 0, 1e6, 0.0),  # 0 = none
    "logit_cap": Key("final_logit_softcapping", float, 0, 1e6, 0.0),
    "attention_scale": Key("attention.scale", float, 0, 1e3, 0.0),  # 0 = what is usual for the architecture
}


class Params:
    """Hyperparameters of one model: `p.n_head` reads `<architecture>.attention.head_count`.

    A missing key without a default, a wrong type and a value out of range are ModelFileErrors that name file, key and
    what is accepted.
    """

    def __init__(self, file: str, architecture: str, metadata: Mapping[str, object]):
        self.file, self.architecture = file, architecture
        prefix = architecture + "."
        self._values = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
        self._read: set[str] = set()
        self._known: dict[str, object] = {}

    def __getattr__(self, name: str):
        if name.startswith("_") or name not in KEYS:
            raise AttributeError(name)
        if name not in self._known:
            self._known[name] = self._get(KEYS[name])
        return self._known[name]

    def _get(self, key: Key):
        self._read.add(key.key)
        if key.key not in self._values:
            if key.default is REQUIRED:
                raise ModelFileError(f"{self.file}: metadata key '{self.full(key.key)}' is missing")
            value = key.default(self) if isinstance(key.default, Callable) else key.default
            if key.type is int and not key.low <= value <= key.high:
                meant = f"is missing, which means {value}; accepted: {key.low} to {key.high}"
                raise ModelFileError(f"{self.file}: metadata key {shown(self.full(key.key))} {meant}")
            return value
        value = _scalar(self._values[key.key])
        if key.type is str:
            if isinstance(value, str):
                return value
            raise self.refused(key.key, "text")
        if key.type is bool:
            if isinstance(value, bool):
                return value
            raise self.refused(key.key, "true or false")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (key.type is float and isinstance(value, float)):
            raise self.refused(key.key, "one whole number" if key.type is int else "one number")
        if not math.isfinite(value) or not key.low <= value <= key.high:
            raise self.refused(key.key, f"{key.low} to {key.high}")
        return key.type(value)

    def full(self, key: str) -> str:
        """The key as it stands in the file."""
        return f"{self.architecture}.{key}"

    def refused(self, key: str, accepted: str) -> ModelFileError:
        """The error for a key whose value we cannot run."""
        given = f"is {shown(self._values.get(key))}"
        if key not in self._values:
            name = next((name for name, known in KEYS.items() if known.key == key), "")
            given = "is missing" + f", which means {self._known[name]}" * (name in self._known)
        return ModelFileError(f"{self.file}: metadata key {shown(self.full(key))} {given}; accepted: {accepted}")

    def divided(self, a: str, b: str) -> int:
        """a / b, which must be whole."""
        x, y = getattr(self, a), getattr(self, b)
        if x % y:
            raise ModelFileError(
                f"{self.file}: {self.full(KEYS[a].key)} = {x} is no multiple of {self.full(KEYS[b].key)} = {y}"
            )
        return x // y

    def only(self, name: str, *accepted) -> None:
        """Refuse a model whose hyperparameter `name` is none of `accepted`."""
        if getattr(self, name) not in accepted:
            raise self.refused(KEYS[name].key, ", ".join(map(str, accepted)))

    def layers(self, key: str, default) -> object:
        """A key that is one number, or a list of one per layer: as Python numbers, `default` where it is missing."""
        self._read.add(key)
        value = self._values.get(key, default)
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, list) and len(value) < self.n_layer:
            raise self.refused(key, f"one number, or {self.n_layer} (one per layer)")
        return value

    def cut_layers(self, n: int) -> None:
        """Only the first n layers are the model's; lists with a value for each layer lose the rest."""
        for key, value in self._values.items():
            if isinstance(value, list) and len(value) == self.n_layer:
                self._values[key] = value[:n]
        self._known["n_layer"] = n

    def check_attention(self) -> None:
        """Relations every model with grouped-query attention and rope has to keep."""
        self.divided("n_head", "n_head_kv")
        if self.n_rot % 2 or self.n_rot > self.head_dim:
            raise self.refused("rope.dimension_count", f"an even number up to the head's {self.head_dim}")

    def check_experts(self) -> None:
        """Relations every model with experts has to keep."""
        if not 1 <= self.n_expert_used <= self.n_expert:
            raise self.refused("expert_used_count", f"1 to the number of experts, {self.n_expert}")
        if self.n_expert_group > 1:
            size = self.divided("n_expert", "n_expert_group")
            if not 1 <= self.n_expert_group_used <= self.n_expert_group:
                raise self.refused("expert_group_used_count", f"1 to the number of groups, {self.n_expert_group}")
            if self.n_expert_group_used * size < self.n_expert_used:
                raise self.refused("expert_group_used_count", f"groups that hold {self.n_expert_used} experts or more")

    def check_all_read(self) -> list[str]:
        """Every key of the architecture must have been read by the model's definition or change nothing; those that no
        engine knows, as they stand in the file.
        """
        unknown = []
        for key in sorted(set(self._values) - self._read - known_keys.HARMLESS):
            if key in known_keys.OF_EXPERTS and not self.n_expert:
                continue
            neutral, value = known_keys.neutral(key, self), _scalar(self._values[key])
            if neutral is None:
                unknown.append(self.full(key))
            elif not neutral:
                raise self.refused(key, f"{self.architecture} models without this key, which is not supported")
            elif value not in ([], *neutral) and not any(_close(value, n) for n in neutral):
                accepted = " or ".join(map(str, dict.fromkeys(neutral)))
                raise self.refused(key, f"{accepted}; other values are not supported")
        return unknown


def _close(a, b) -> bool:
    """Whether two numbers differ only by how precisely the file holds one of them (f32)."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return numbers and math.isclose(a, b, rel_tol=1e-6)


def _scalar(value):
    """NumPy scalars as Python numbers; a list of equal values (one per layer) as that value."""
    if isinstance(value, (bytes, str)):
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
        return value[0]
    return value
