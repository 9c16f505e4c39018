"""The Python API: a loaded model that reads and writes text. Joins models (architectures) and engine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import numpy as np

from ikpy_llm import models
from ikpy_llm.engine import overrides, special_ids
from ikpy_llm.engine.chat import checked
from ikpy_llm.engine.conversation import Cache, Conversation, End, checked_n_predict, stream
from ikpy_llm.engine.gguf import open_gguf
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.session import Session
from ikpy_llm.engine.stops import checked_stops
from ikpy_llm.errors import IkpyError, shown

log = logging.getLogger("ikpy.api")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Timings:
    """What loading took, and prompts and generation since `Model.load` or `reset`; see `Model.timings`.

    prompt_: steps of several tokens; eval_: steps of one token (generation). _s: seconds of computing, without sampling
    and text; n_: tokens; _bytes: what had to come from memory at least; _flops: floating-point operations.
    """

    load_s: float
    prompt_s: float
    n_prompt: int
    eval_s: float
    n_eval: int
    prompt_bytes: int
    eval_bytes: int
    prompt_flops: int
    eval_flops: int

    @property
    def prompt_rate(self) -> float:
        """Tokens per second of prompts; 0 before any."""
        return self.n_prompt / self.prompt_s if self.n_prompt else 0.0

    @property
    def eval_rate(self) -> float:
        """Tokens per second of generation; 0 before any."""
        return self.n_eval / self.eval_s if self.n_eval else 0.0

    def __str__(self) -> str:
        return (
            f"load {self.load_s:.2f} s; prompt {self.n_prompt} tokens, {self.prompt_s:.3f} s, {self.prompt_rate:.1f} "
            f"t/s; generation {self.n_eval} tokens, {self.eval_s:.3f} s, {self.eval_rate:.1f} t/s"
        )


class Model:
    """One model in memory with one sequence. Made by `Model.load`; close it, or use it as a context manager.

    `meta`: the file's metadata, keys as in GGUF; `path`: the file; `n_ctx`, `n_vocab`, `threads`; `vocab`: its
    vocabulary; `session`: the engine below, to go token by token. All of it is described in docs/api.md.
    A text that begins like the one before it is evaluated only from where they differ. One text at a time: a generator
    raises IkpyError where the model was used for something else since its last piece, by whatever thread. Whatever
    computes raises IkpyError once the model is closed, and where its file was changed since loading.
    """

    def __init__(self, session: Session, meta: dict, path, load_s: float):
        self.meta, self.path, self._load_s = meta, path, load_s
        self._session, self._cache = session, Cache(session)
        self._told = False  # what the file recommends to samplers
        self._chat: tuple[object, Conversation] | None = None  # of chat(): template and how far it has come

    @classmethod
    def load(
        cls,
        path=None,
        *,
        n_ctx: int | None = None,
        threads: int = 0,
        threads_batch: int = 0,
        repack: bool | None = None,
        pp_requant: bool = False,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        khad: bool = False,
        vhad: bool = False,
        flash_attn: bool = True,
        swa_full: bool = False,
        mla: int = 3,
        amb: int = 256,
        ser: str = "",
        override_kv: dict[str, object] | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Open a GGUF file (None: the demo model), compile what it needs, weave its weights.

        path: str or Path; of a split model the first part.
        n_ctx: positions (tokens) of context, rounded up to a multiple of 256; 0 = as many as the model was trained for,
        None = that, at most 4096.
        threads: 0 = IKPY_THREADS, or the physical cores this process may use.
        threads_batch: those of prompts; 0 = IKPY_THREADS_BATCH, or as many.
        repack: weave weights into panels (about the file's size of memory again); None = IKPY_REPACK, or where memory
        allows.
        pp_requant: prompts use the matrices requantized to Q8_0 (8.5 bits per weight more memory).
        n_ubatch: tokens of a prompt computed at once at most; n_batch (llama.cpp's -b) limits it.
        cache_type_k, cache_type_v: of keys and values in the KV cache: f32, f16, bf16, q8_0, q8_KV, q6_0, q5_1, q5_0,
        q4_1, q4_0, iq4_nl; khad, vhad: rotate them (Hadamard) before they are quantized.
        flash_attn: False attends plainly in float32: slow, to compare with.
        swa_full: layers with a sliding window keep all positions, so that one can go back to any of them.
        mla, amb: how DeepSeek models attend (0 to 3), and MiB for it at once.
        ser: "Kmin,t": after the Kmin best experts of a token only those above t times the best.
        override_kv: metadata in place of the file's; keys as in GGUF, or without the architecture ("rope.freq_base").
        progress(done, total, name): called during slow parts; kernels compiled, then bytes woven (or fetched).
        Raises ModelFileError, one line, for everything wrong with the file; IkpyError for settings out of range, too
        little memory, kernels that cannot be compiled and a demo model that cannot be fetched.
        """
        start = time.perf_counter()
        if path is None:
            from ikpy_llm.engine.demo_model import demo_model_path

            path = demo_model_path(progress)
        options = Options(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            threads=threads or 0,
            threads_batch=threads_batch or 0,
            repack=repack,
            pp_requant=pp_requant,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            khad=khad,
            vhad=vhad,
            flash_attn=flash_attn,
            swa_full=swa_full,
            mla=mla,
            amb=amb,
            ser=ser,
        )
        file = open_gguf(path)
        overrides.apply(file, override_kv)
        special_ids.warn(file.meta, path)
        session = Session(file, models.builder(file.meta, str(path)), options, progress)
        return cls(session, file.meta, path, time.perf_counter() - start)

    @property
    def session(self) -> Session:
        """The engine (engine.session.Session): `eval(tokens)`, `rewind(position)`, `position`.

        Who asks for it may leave anything in the KV cache, so the next text is evaluated from its beginning.
        """
        self._cache.forget()
        return self._session

    @cached_property
    def vocab(self):
        """The vocabulary in the file: `n_tokens`, ids `bos` and `eos` (or None), `eog`: ids that end a text.

        ModelFileError where the keys tokenizer.ggml.* contradict each other.
        """
        from ikpy_llm.engine.vocab import load_vocab

        return load_vocab(self.meta, self.path)

    @property
    def n_ctx(self) -> int:
        """Positions (tokens) the context holds."""
        return self._session.n_ctx

    @property
    def n_vocab(self) -> int:
        """Length of a row of logits; the vocabulary may have fewer tokens."""
        return self._session.n_vocab

    @property
    def threads(self) -> int:
        """Worker threads of generation; prompts may have others (`threads_batch`)."""
        return self._session.n_threads

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        add_special: with the BOS (EOS) that the model file asks for. parse_special: `<|...|>` in the text are tokens.
        IkpyError for a kind of vocabulary we cannot encode (tokenizer.ggml.model is not gpt2, llama, bert or t5).
        """
        return self.vocab.encode(text, add_special=add_special, parse_special=parse_special)

    def _ids(self, text, parse_special: bool) -> list[int]:
        """The tokens of a text, or token ids as they are."""
        if isinstance(text, str):
            return self.tokenize(text, parse_special=parse_special)
        ids = list(text) if isinstance(text, Iterable) and not isinstance(text, bytes) else [None]
        if not all(isinstance(token, Integral) for token in ids):
            raise IkpyError(f"{shown(text)} is neither a text nor a list of token ids")
        return ids

    def detokenize(self, ids, *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD. skip_special: special tokens add nothing.

        IkpyError for an id outside the vocabulary.
        """
        return self.vocab.decode(ids, skip_special=skip_special)

    def logits(self, tokens) -> np.ndarray:
        """float32 (n, n_vocab): row i is what follows tokens[: i + 1]; they start a new sequence.

        IkpyError for no tokens, ids out of range, more than n_ctx tokens, and values that are not finite.
        """
        with self._cache.lock:
            self.session.rewind(0)
            return self._session.eval(tokens, all_logits=True)

    def embed(self, text: str | list[int], *, pooling: str | None = None, normalize: bool = True) -> np.ndarray:
        """A text (or token ids) as a vector: float32 (n_embd,); with pooling "none" a row per token: (n, n_embd).

        The rows are what the last norm gives, before the output matrix; they start a new sequence.
        pooling: "mean", "last" or "cls" (first) row; None = what the file asks for, mean where it does not say.
        normalize: scaled to Euclidean length 1, so that a dot product is the cosine.
        IkpyError for a pooling of another name, no tokens, and as in `logits`.
        """
        from ikpy_llm.engine import embedding

        kind = embedding.pooling_of(self.meta, self.path) if pooling is None else embedding.checked(pooling)
        tokens = self._ids(text, parse_special=False)
        with self._cache.lock:
            self.session.rewind(0)
            rows = self._session.hidden(tokens)
        return embedding.pooled(rows, kind, normalize)

    def perplexity(self, text: str, n_ctx: int = 512, *, n_chunks: int = -1, progress: Progress | None = None):
        """How well the model predicts a text: an engine.perplexity.Perplexity (`value`, `error`, `n_scored`, ...).

        By llama.cpp's protocol: chunks of n_ctx tokens (4 to the model's n_ctx), of each the second half scored; a
        `value` compares with others' only for the same text, vocabulary and n_ctx. n_chunks: at most so many, -1 = all.
        progress(done, total, name): after every chunk. It starts a new sequence.
        IkpyError for a text of less than 2 * n_ctx tokens, n_ctx or n_chunks out of range, and as in `logits`.
        """
        from ikpy_llm.engine.perplexity import perplexity

        bos = self.vocab.bos if self.vocab.add_bos else None
        tokens = self.tokenize(text)
        with self._cache.lock:
            return perplexity(self.session, tokens, bos=bos, n_ctx=n_ctx, n_chunks=n_chunks, progress=progress)

    def sampler(self, *, grammar: str | None = None, json_schema=None, ignore_eos: bool = False, **sampling):
        """An engine.sampling.Sampler for one text; what `sampling` leaves open, the model file may recommend.

        sampling: fields of engine.sampling.SamplerOptions; names, defaults and formulas are ik_llama.cpp's.
        grammar: GBNF. json_schema: text, dict or pydantic class. Both need the extra `grammar` and exclude each other.
        IkpyError for an unknown name, a value out of range, rules that cannot be read, and without the extra.
        """
        from ikpy_llm.engine.sampling import Sampler, SamplerOptions
        from ikpy_llm.engine.sampling_options import file_defaults

        recommended = {k: v for k, v in file_defaults(self.meta).items() if k not in sampling}
        if recommended and not self._told:
            self._told = True
            log.info(
                "the model file recommends: %s",
                ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in recommended.items()),
            )
        known = SamplerOptions.__dataclass_fields__
        for name in sampling.keys() - known.keys():
            raise IkpyError(f"there is no option called {name}; those of samplers are: {', '.join(known)}")
        options = SamplerOptions(**recommended, **sampling)
        n_vocab = min(self.n_vocab, self.vocab.n_tokens or self.n_vocab)  # a file without tokens has only ids
        rules = None
        if grammar is not None or json_schema is not None:
            from ikpy_llm.engine.grammar import Grammar
            from ikpy_llm.engine.json_schema import as_text

            if grammar is not None and json_schema is not None:
                raise IkpyError("grammar and json_schema exclude each other")
            if not isinstance(grammar, str | None):
                raise IkpyError(f"grammar is {shown(grammar)}; a text in GBNF is accepted")
            source, kind = (grammar, "gbnf") if grammar is not None else (as_text(json_schema), "json")
            rules = Grammar(self.vocab, source, kind, n_vocab)
        return Sampler(options, n_vocab, self.vocab, banned=self.vocab.eog if ignore_eos else (), grammar=rules)

    def generate(
        self,
        prompt: str | list[int],
        *,
        n_predict: int = -1,
        stop=(),
        grammar: str | None = None,
        json_schema=None,
        ignore_eos: bool = False,
        parse_special: bool = True,
        show_special: bool = False,
        keep: int | None = None,
        **sampling,
    ) -> Generator[str, None, End]:
        """Continue `prompt` (text or ids); yields pieces of text as they come.

        n_predict: tokens at most; -1 = until the model ends its text or the context is full, -2 = until it is full.
        stop: texts before which the text ends. grammar (GBNF), json_schema (text, dict, pydantic class): its rules.
        ignore_eos: the model cannot end its text. parse_special: `<|...|>` in the prompt are tokens. show_special:
        those the model writes are part of the text.
        keep: when the context is full, forget the older half of the text but for so many tokens at its beginning (-1:
        the prompt) and go on; None: end there.
        sampling: fields of engine.sampling.SamplerOptions (temp, top_k, top_p, min_p, repeat_penalty, seed, ...).
        The generator's own value is an engine.conversation.End: how the text ended, and its ids.
        IkpyError at the call for a prompt that is empty or longer than the context, an n_predict or a stop of another
        kind, and as in `sampler`; while iterating if no token may follow, and as in `logits`.
        """
        tokens = self._ids(prompt, parse_special)
        if not tokens:
            raise IkpyError("the prompt is empty and the model has no token to start a text with")
        if len(tokens) > self.n_ctx:
            raise IkpyError(
                f"the prompt of {len(tokens)} tokens does not fit into the context of {self.n_ctx} positions; choose a "
                "larger one (-c)"
            )
        ignore_eos = ignore_eos or checked_n_predict(n_predict) == -2
        ends, stops = self.ends(stop)
        sampler = self.sampler(grammar=grammar, json_schema=json_schema, ignore_eos=ignore_eos, **sampling)
        for token in tokens:
            sampler.accept(token)
        return self.stream(
            tokens, sampler, n_predict=n_predict, ends=ends, stops=stops, show_special=show_special, keep=keep
        )

    def stream(self, tokens: list[int], sampler, *, show_special: bool = False, **options) -> Generator[str, None, End]:
        """The lower half of `generate`: tokens and a sampler that has accepted them.

        options: n_predict, ends, stops, keep; see engine.conversation.stream. IkpyError while iterating, as `generate`.
        """
        return stream(self._cache, tokens, sampler, decoder=self.vocab.decoder(not show_special), **options)

    def ends(self, stop=()) -> tuple[frozenset[int], list[str]]:
        """Ids that end a text, and the stop texts that are not such a token; stop: one text or several.

        IkpyError for a stop that is no text.
        """
        found, texts = set(self.vocab.eog), []
        for text in checked_stops(stop):
            ids = self.tokenize(text, add_special=False, parse_special=True)
            if len(ids) == 1 and not self.vocab.token_bytes(ids[0]):
                found.add(ids[0])
            else:
                texts.append(text)
        return frozenset(found), texts

    def conversation(self, messages=(), *, template: str | None = None, tools=None, **variables) -> Conversation:
        """An engine.conversation.Conversation that begins with `messages`: append one, then stream `reply(sampler)`.

        messages: as in `chat`; copied. template: a name or Jinja instead of the file's. tools: as in OpenAI's API.
        variables: what the template may read (enable_thinking, ...).
        IkpyError for messages of another form and an unknown template; its `reply` raises the rest, as `chat` does.
        """
        from ikpy_llm.engine.chat import chat_template

        jinja = chat_template(self.meta, self.vocab, template, bool(tools))
        return Conversation(self._cache, self.vocab, jinja, messages, tools=tools, **variables)

    def chat(
        self,
        messages,
        *,
        n_predict: int = -1,
        stop=(),
        tools=None,
        template: str | None = None,
        template_kwargs: dict | None = None,
        grammar: str | None = None,
        json_schema=None,
        ignore_eos: bool = False,
        **sampling,
    ) -> Generator[str, None, End]:
        """The assistant's next message in pieces; `messages` as in OpenAI's API (role, content), not changed.

        template: a name or Jinja instead of the file's template; template_kwargs: what it may read besides.
        A call that continues the messages of the last one evaluates only what is new. The rest is as in `generate`,
        the generator's own value too.
        IkpyError at the call for messages of another form, an unknown template and as in `sampler`; while iterating for
        a template that refuses the messages, a conversation longer than n_ctx, and as in `generate`.
        """
        variables = dict(template_kwargs or {})
        key = (template, json.dumps([tools, variables], default=repr, sort_keys=True))
        chat = self._chat
        if chat is None or chat[0] != key:
            chat = self._chat = key, self.conversation(template=template, tools=tools, **variables)
        conversation, messages = chat[1], checked(messages)
        ignore_eos = ignore_eos or checked_n_predict(n_predict) == -2
        ends, stops = self.ends(stop)
        sampler = self.sampler(grammar=grammar, json_schema=json_schema, ignore_eos=ignore_eos, **sampling)
        with self._cache.lock:
            conversation.messages = messages
            return conversation.reply(sampler, n_predict=n_predict, stops=stops, ends=ends)

    @property
    def timings(self) -> Timings:
        """What loading took, and prompts and generation since then or since `reset`; seconds, tokens, bytes, flops."""
        p, g = (self._session.timings[name] for name in ("prompt", "generation"))
        return Timings(self._load_s, p.seconds, p.tokens, g.seconds, g.tokens, p.bytes, g.bytes, p.flops, g.flops)

    @property
    def cached_tokens(self) -> list[int]:
        """The text whose keys and values are in the cache; empty once `session` was used."""
        return list(self._cache.tokens)

    def after_prompt(self, call: Callable[[], None]) -> None:
        """Call it once, when the next text has been read and nothing has been generated yet."""
        self._cache.after_prompt = call

    def save_session(self, path) -> int:
        """Write the text so far (tokens and KV cache) to a file; its bytes. See docs/api.md.

        IkpyError for a file that cannot be written, and where there is no text, or `session` was used for another.
        """
        return self._cache.save(path)

    def load_session(self, path) -> list[int]:
        """Go on from a file of `save_session`: its tokens; a prompt that begins like them is not read again.

        IkpyError, one line, for a file that cannot be read, is damaged, does not fit into the context, or is of another
        model, KV cache or kind of CPU.
        """
        return self._cache.load(path)

    def reset(self) -> None:
        """Start a new sequence, and timings (but for `load_s`) at zero."""
        with self._cache.lock:
            self.session.rewind(0)
        for t in self._session.timings.values():
            t.__init__()

    def close(self) -> None:
        """End the worker threads; computing is an IkpyError afterwards. A second call does nothing."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_) -> None:
        self.close()
