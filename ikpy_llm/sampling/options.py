"""The options of samplers: every one stated once, with its default, its flags and its help; light to import."""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real

from ikpy_llm import arguments
from ikpy_llm.errors import IkpyError, shown

# What a chain is made of, and the letters of --sampling-seq, which mean different things in the two programs.
LETTERS = {
    "ik": {
        "d": "dry", "k": "top_k", "f": "tfs_z", "y": "typical_p", "p": "top_p", "m": "min_p", "x": "xtc",
        "n": "top_n_sigma", "t": "temperature", "w": "adaptive_p", "s": "dist",
    },
    "llama": {
        "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typical_p", "p": "top_p", "m": "min_p",
        "x": "xtc", "t": "temperature", "w": "adaptive_p",
    },
}  # fmt: skip
CHAINS = {"ik": "dkfypmxntw", "llama": "edskypmxt"}  # default orders
SPELLINGS = {"typ_p": "typical_p", "typical": "typical_p", "typ": "typical_p", "tfs": "tfs_z", "temp": "temperature"}
SPELLINGS |= {"nucleus": "top_p"}
# Where llama.cpp's defaults differ from ik_llama.cpp's, and ollama's, which ran a model before.
DIALECTS = {"ik": {}, "llama": {"top_n_sigma": -1.0, "xtc_threshold": 0.1, "dry_penalty_last_n": 64}}
PRESETS = {"ollama": {"temp": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1}}
MOST_BIAS = 1e38  # added to a logit it stays a finite float32


def option(default, *flags: str, help: str, metavar: str | None = None, low=None, high=None):
    """A field of SamplerOptions; `flags`: how command lines write it; `low`, `high`: accepted values."""
    meta = {"flags": flags, "help": help, "metavar": metavar, "low": low, "high": high}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class SamplerOptions:
    """How tokens are chosen; names, defaults and order of the steps as in ik_llama.cpp."""

    temp: float = option(0.8, "--temp", "--temperature", metavar="T", help="temperature, 0 takes the most likely token")
    dynatemp_range: float = option(
        0.0, "--dynatemp-range", metavar="R", low=0, help="temperature from temp-R to temp+R by entropy, 0: fixed"
    )
    dynatemp_exponent: float = option(
        1.0, "--dynatemp-exp", metavar="E", low=0, help="exponent of the relative entropy that sets the temperature"
    )
    top_k: int = option(40, "--top-k", metavar="K", help="keep the K most likely tokens, 0: all")
    top_p: float = option(
        0.95, "--top-p", metavar="P", low=0, help="keep the most likely tokens up to P in sum, 1: all"
    )
    min_p: float = option(
        0.05, "--min-p", metavar="P", low=0, high=1, help="keep tokens of at least P times the best, 0: all"
    )
    tfs_z: float = option(1.0, "--tfs", metavar="Z", help="cut the tail where the curve is flat, 1: off")
    typical_p: float = option(
        1.0, "--typical", "--typical-p", metavar="P", help="keep tokens of typical surprise up to P in sum, 1: off"
    )
    top_n_sigma: float = option(
        0.0, "--top-n-sigma", "--top-nsigma", metavar="N", help="keep logits within N deviations of the best, 0: off"
    )
    xtc_probability: float = option(
        0.0, "--xtc-probability", metavar="P", low=0, help="chance to drop the likely tokens but the last, 0: off"
    )
    xtc_threshold: float = option(
        1.0, "--xtc-threshold", metavar="P", low=0, help="tokens of at least P are likely ones, above 0.5: off"
    )
    min_keep: int = option(0, "--min-keep", metavar="N", low=0, help="keep at least N tokens in every step")
    repeat_penalty: float = option(
        1.0, "--repeat-penalty", metavar="R", low=1e-9, help="divide the logits of recent tokens by R, 1: off"
    )
    repeat_last_n: int = option(
        64, "--repeat-last-n", metavar="N", low=-1, help="how many tokens are recent, -1: the whole context"
    )
    presence_penalty: float = option(
        0.0, "--presence-penalty", metavar="P", help="subtract P from the logits of recent tokens"
    )
    frequency_penalty: float = option(
        0.0, "--frequency-penalty", metavar="P", help="subtract P for every time a token is among the recent ones"
    )
    penalize_nl: bool = option(False, "--penalize-nl", help="penalties hit line ends too")
    dry_multiplier: float = option(
        0.0, "--dry-multiplier", metavar="M", low=0, help="DRY: penalty of continuing a repetition, 0: off"
    )
    dry_base: float = option(1.75, "--dry-base", metavar="B", low=0, help="DRY: factor for every further token")
    dry_allowed_length: int = option(
        2, "--dry-allowed-length", metavar="N", low=1, help="DRY: shorter repetitions are free"
    )
    dry_penalty_last_n: int = option(
        -1, "--dry-penalty-last-n", metavar="N", low=-1, help="DRY: how many tokens are searched, -1: all, 0: off"
    )
    dry_sequence_breakers: tuple = option(
        ("\n", ":", '"', "*"), help="DRY: texts that a repetition does not reach across"
    )
    mirostat: int = option(
        0, "--mirostat", metavar="V", low=0, high=2, help="1 or 2: hold the surprise instead of cutting, 0: off"
    )
    mirostat_lr: float = option(0.1, "--mirostat-lr", metavar="E", low=0, help="mirostat: how fast it learns")
    mirostat_ent: float = option(5.0, "--mirostat-ent", metavar="T", low=0, help="mirostat: surprise in bits to hold")
    adaptive_target: float = option(
        -1.0, "--adaptive-target", metavar="P", high=1, help="adaptive-p: probability to prefer, below 0: off"
    )
    adaptive_decay: float = option(
        0.9, "--adaptive-decay", metavar="D", low=0, high=1, help="adaptive-p: how long the past counts"
    )
    adaptive_updt_w_cur: bool = option(
        False, "--adaptive-updt-w-cur", help="adaptive-p: learn from probabilities after the other steps"
    )
    logit_bias: Mapping | None = option(None, help="token id -> what is added to its logit; -inf forbids it")
    samplers: str = option("", help="steps in order, 'top_k;top_p;...'; empty: the dialect's order")
    dialect: str = option("ik", help="whose order is the default: ik or llama")
    seed: int = option(-1, "-s", "--seed", metavar="N", help="seed of the random numbers, -1: a new one each run")

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        if self.dialect not in DIALECTS:
            raise IkpyError(f"dialect is {shown(self.dialect)}; {' or '.join(DIALECTS)} is accepted")
        self.chain()

    def chain(self) -> tuple[str, ...]:
        """The steps in order: those of `samplers`, or the dialect's."""
        return chain_of(self.samplers) if self.samplers else chain_of_letters(CHAINS[self.dialect], self.dialect)


def checked(f: Field, value):
    """`value` for the option `f`; IkpyError says what is accepted."""
    if f.name == "logit_bias":
        return _bias(value)
    if f.name == "dry_sequence_breakers":
        return tuple(text for text in arguments.texts(f.name, value) if text)
    check = arguments.of_kind(f.type)
    return (
        check(f.name, value, f.metadata["low"], f.metadata["high"]) if f.type in (int, float) else check(f.name, value)
    )


def _bias(value) -> dict[int, float]:
    if value is not None and not isinstance(value, Mapping):
        arguments.refuse("logit_bias", value, "a dict of token ids and numbers")
    out = {}
    for token, amount in () if value is None else value.items():
        token, amount = arguments.plain(token), arguments.plain(amount)
        good = isinstance(token, Integral) and isinstance(amount, Real) and token >= 0
        if not good or isinstance(token, bool) or isinstance(amount, bool) or not -math.inf <= amount <= MOST_BIAS:
            raise IkpyError(
                f"logit_bias: {shown(token)} -> {shown(amount)}; a token id and a number up to {MOST_BIAS:g} (or -inf) "
                "are accepted"
            )
        out[int(token)] = -math.inf if amount < -MOST_BIAS else float(amount)
    return out


def chain_of(text: str) -> tuple[str, ...]:
    """The steps named in `top_k;top-p;temperature`; both programs' spellings are accepted."""
    known = {name for letters in LETTERS.values() for name in letters.values()}
    names = [part.strip().lower().replace("-", "_") for part in text.split(";") if part.strip()]
    names = [SPELLINGS.get(name, name) for name in names]
    for name in names:
        if name not in known:
            raise IkpyError(f"samplers: no step is called {shown(name)}; there are: {', '.join(sorted(known))}")
    return tuple(names)


def chain_of_letters(letters: str, dialect: str = "ik") -> tuple[str, ...]:
    """The steps of --sampling-seq; a letter may mean different steps in the two dialects."""
    table = LETTERS[dialect]
    for letter in letters:
        if letter not in table:
            known = ", ".join(f"{k} {name}" for k, name in table.items())
            raise IkpyError(f"sampling-seq: {shown(letter)} is no step of {dialect}; there are: {known}")
    return tuple(table[letter] for letter in letters)


def bias_of(text: str) -> tuple[int, float]:
    """Token and amount of `-l 15043+1` or `-l 15043-inf`."""
    import re

    found = re.fullmatch(r"\s*(\d+)\s*(?:([+-](?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|inf))|=?false)\s*", text.lower())
    if not found or found[2] == "+inf":
        raise IkpyError(f"logit-bias: {shown(text)} is not TOKEN_ID+BIAS or TOKEN_ID-BIAS, for example 15043-inf")
    return int(found[1]), float(found[2] or "-inf")


def file_defaults(meta: dict) -> dict:
    """Sampler options that a model file recommends (keys general.sampling.*), by our names."""
    names = {"temp": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "xtc_probability": "xtc_probability"}
    names |= {"xtc_threshold": "xtc_threshold", "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty"}
    names |= {"mirostat": "mirostat", "mirostat_tau": "mirostat_ent", "mirostat_eta": "mirostat_lr"}
    found = {ours: meta[key] for name, ours in names.items() if (key := f"general.sampling.{name}") in meta}
    if isinstance(letters := meta.get("general.sampling.sequence"), str):
        found["samplers"] = ";".join(chain_of(letters) if ";" in letters else chain_of_letters(letters, "llama"))
    SamplerOptions(**found)  # what a file says is checked like what a user says
    return found
