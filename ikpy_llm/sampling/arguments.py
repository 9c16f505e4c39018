"""The options of samplers as typed keywords, for editors and type checkers: those of SamplerOptions."""

from collections.abc import Iterable, Mapping
from typing import TypedDict


class SamplerArguments(TypedDict, total=False):
    """Keywords of `Model.generate`, `chat` and `sampler` that say how tokens are chosen."""

    temp: float
    """Temperature, 0 takes the most likely token."""
    dynatemp_range: float
    """Temperature from temp-R to temp+R by entropy, 0: fixed."""
    dynatemp_exponent: float
    """Exponent of the relative entropy that sets the temperature."""
    top_k: int
    """Keep the K most likely tokens, 0: all."""
    top_p: float
    """Keep the most likely tokens up to P in sum, 1: all."""
    min_p: float
    """Keep tokens of at least P times the best, 0: all."""
    tfs_z: float
    """Cut the tail where the curve is flat, 1: off."""
    typical_p: float
    """Keep tokens of typical surprise up to P in sum, 1: off."""
    top_n_sigma: float
    """Keep logits within N deviations of the best, 0: off."""
    xtc_probability: float
    """Chance to drop the likely tokens but the last, 0: off."""
    xtc_threshold: float
    """Tokens of at least P are likely ones, above 0.5: off."""
    min_keep: int
    """Keep at least N tokens in every step."""
    repeat_penalty: float
    """Divide the logits of recent tokens by R, 1: off."""
    repeat_last_n: int
    """How many tokens are recent, -1: the whole context."""
    presence_penalty: float
    """Subtract P from the logits of recent tokens."""
    frequency_penalty: float
    """Subtract P for every time a token is among the recent ones."""
    penalize_nl: bool
    """Penalties hit line ends too."""
    dry_multiplier: float
    """DRY: penalty of continuing a repetition, 0: off."""
    dry_base: float
    """DRY: factor for every further token."""
    dry_allowed_length: int
    """DRY: shorter repetitions are free."""
    dry_penalty_last_n: int
    """DRY: how many tokens are searched, -1: all, 0: off."""
    dry_sequence_breakers: Iterable[str]
    """DRY: texts that a repetition does not reach across."""
    mirostat: int
    """1 or 2: hold the surprise instead of cutting, 0: off."""
    mirostat_lr: float
    """Mirostat: how fast it learns."""
    mirostat_ent: float
    """Mirostat: surprise in bits to hold."""
    adaptive_target: float
    """Adaptive-p: probability to prefer, below 0: off."""
    adaptive_decay: float
    """Adaptive-p: how long the past counts."""
    adaptive_updt_w_cur: bool
    """Adaptive-p: learn from probabilities after the other steps."""
    logit_bias: Mapping[int, float] | None
    """Token id -> what is added to its logit; -inf forbids it."""
    samplers: str
    """Steps in order, 'top_k;top_p;...'; empty: the dialect's order."""
    dialect: str
    """Whose order is the default: ik or llama."""
    seed: int
    """Seed of the random numbers, -1: a new one each run."""
