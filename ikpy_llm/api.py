"""The Python API: a loaded model that reads and writes text. Joins models (architectures) and engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import numpy as np

from ikpy_llm import models
from ikpy_llm.arguments import as_json, checks_methods, file_path, plain, refuse, token_ids, whole
from ikpy_llm.engine.file import overrides
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.options import options_of
from ikpy_llm.engine.step.conversation import Cache, Conversation, End, checked_n_predict, stream
from ikpy_llm.engine.step.session import Session
from ikpy_llm.engine.step.timing import Timings as Timings
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.sampling.options import SamplerOptions, file_defaults
from ikpy_llm.text.chat.chat import begun, checked, checked_tools, checked_variables
from ikpy_llm.text.stops import checked_ends, checked_stops, ends_of
from ikpy_llm.text.vocab import special_ids

if TYPE_CHECKING:
    from ikpy_llm.sampling.arguments import SamplerArguments

log = logging.getLogger("ikpy.api")
Progress = Callable[[int, int, str], None]
Ids = Sequence[int] | np.ndarray  # token ids


@checks_methods({"sampling": SamplerOptions})
class Model:
    """One model in memory with one sequence. Made by `Model.load`; close it, or use it as a context manager.

    `meta`: the file's metadata, keys as in GGUF; `path`: the file; `n_ctx`, `n_vocab`, `threads`; `vocab`: its
    vocabulary; `session`: the engine below, to go token by token. All of it is described in docs/api.md.
    A text that begins like the one before it is evaluated only from where they differ. One text at a time: a generator
    raises IkpyError where the model was used for something else since its last piece, by whatever thread. Whatever
    computes raises IkpyError once the model is closed, and where its file was changed since loading.
    """

    def __init__(self, session: Session | None = None, meta=None, path=None, load_s: float = 0.0, *_, **__):
        if not isinstance(session, Session):
            raise IkpyError(
                "Model(...) opens no file; Model.load(path, ...) does, for example Model.load('model.gguf')"
            )
        self.meta, self.path, self._load_s = meta, path, load_s
        self._session, self._cache, session.owns_file = session, Cache(session), True
        self._told = False  # what the file recommends to samplers
        self._chat: tuple[object, Conversation] | None = None  # of chat(): template and how far it has come

    def __repr__(self) -> str:
        name = self.meta.get("general.name")
        what = f"{self.meta.get('general.architecture')}" + f" {shown(name)}" * isinstance(name, str)
        mb = self._session.file.n_bytes / 1e6
        return f"<Model {self.path}: {what}, {mb:.0f} MB, n_ctx {self.n_ctx}, {self.threads} threads>"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike | None = None,
        *,
        n_ctx: int | None = None,
        threads: int | None = 0,
        threads_batch: int | None = 0,
        repack: bool | None = None,
        pp_requant: bool | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        khad: bool | None = None,
        vhad: bool | None = None,
        flash_attn: bool | None = None,
        swa_full: bool | None = None,
        mla: int | None = None,
        amb: int | None = None,
        ser: str | None = None,
        override_kv: dict[str, object] | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Open a GGUF file (None: the demo model), compile what it needs, weave its weights.

        path: str or Path; of a split model the first part. A str "user/repo" or "user/repo:QUANT" that is no file here
        is a model of the Hugging Face hub, fetched once.
        n_ctx: positions (tokens) of context, rounded up to a multiple of 256; 0 = as many as the model was trained for,
        None = that, at most 4096.
        What is None is as the environment says, for example IKPY_CACHE_TYPE_K, else the default in brackets.
        threads: 0 = IKPY_THREADS, or the physical cores this process may use.
        threads_batch: those of prompts; 0 = IKPY_THREADS_BATCH, or as many.
        repack: weave weights into panels (about the file's size of memory again); None = IKPY_REPACK, or where memory
        allows.
        pp_requant: prompts use the matrices requantized to Q8_0, 8.5 bits per weight more memory [False].
        n_ubatch: tokens of a prompt computed at once at most; n_batch (llama.cpp's -b) limits it.
        cache_type_k, cache_type_v: of keys and values in the KV cache: f32, f16, bf16, q8_0, q8_KV, q6_0, q5_1, q5_0,
        q4_1, q4_0, iq4_nl [f16]; khad, vhad: rotate them (Hadamard) before they are quantized [False].
        flash_attn: False attends plainly in float32: slow, to compare with [True].
        swa_full: layers with a sliding window keep all positions, so that one can go back to any of them [False].
        mla, amb: how DeepSeek models attend, 0 to 3 [3], and MiB for it at once [256].
        ser: "Kmin,t": after the Kmin best experts of a token only those above t times the best [all].
        override_kv: metadata in place of the file's; keys as in GGUF, or without the architecture ("rope.freq_base").
        progress(done, total, name): called during slow parts; kernels compiled, then bytes woven (or fetched).
        Raises ModelFileError, one line, for everything wrong with the file; IkpyError for settings out of range, too
        little memory, kernels that cannot be compiled and a demo model that cannot be fetched.
        """
        start = time.perf_counter()
        if path is None:
            from ikpy_llm.engine.file.demo_model import demo_model_path

            path = demo_model_path(progress)
        path = file_path("path", path)
        if isinstance(path, str) and not os.path.exists(path):
            from ikpy_llm.engine.file import hub

            path = hub.found(path)
        options = options_of(
            n_ctx=n_ctx, threads=threads, threads_batch=threads_batch, repack=repack, pp_requant=pp_requant,
            n_batch=n_batch, n_ubatch=n_ubatch, cache_type_k=cache_type_k, cache_type_v=cache_type_v, khad=khad,
            vhad=vhad, flash_attn=flash_attn, swa_full=swa_full, mla=mla, amb=amb, ser=ser,
        )  # fmt: skip
        file = open_gguf(path)
        overrides.apply(file, override_kv)
        special_ids.warn(file.meta, path)
        session = Session(file, models.builder(file.meta, str(path)), options, progress)
        return cls(session, file.meta, path, time.perf_counter() - start)

    @property
    def session(self) -> Session:
        """The engine (engine.step.session.Session): `eval(tokens)`, `rewind(position)`, `position`.

        Who asks for it may leave anything in the KV cache, so the next text is evaluated from its beginning.
        """
        self._cache.forget()
        return self._session

    @cached_property
    def vocab(self):
        """The vocabulary in the file: `n_tokens`, ids `bos` and `eos` (or None), `eog`: ids that end a text.

        ModelFileError where the keys tokenizer.ggml.* contradict each other.
        """
        from ikpy_llm.text.vocab.vocab import load_vocab

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

    def _ids(self, name: str, text, parse_special: bool) -> list[int]:
        """The tokens of a text, or token ids as they are; `name`: of the argument."""
        text = plain(text)
        if isinstance(text, str):
            return self.tokenize(text, parse_special=parse_special)
        return token_ids(name, text, self.n_vocab, "a text or a list of token ids")

    def detokenize(self, ids: Ids, *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD. skip_special: special tokens add nothing.

        IkpyError for an id outside the vocabulary.
        """
        return self.vocab.decode(token_ids("ids", ids), skip_special=skip_special)

    def logits(self, tokens: Ids) -> np.ndarray:
        """float32 (n, n_vocab): row i is what follows tokens[: i + 1]; they start a new sequence.

        IkpyError for no tokens, ids out of range, more than n_ctx tokens, and values that are not finite.
        """
        tokens = token_ids("tokens", tokens, self.n_vocab)
        with self._cache.lock:
            self.session.rewind(0)
            return self._session.eval(tokens, all_logits=True)

    def embed(self, text: str | Ids, *, pooling: str | None = None, normalize: bool = True) -> np.ndarray:
        """A text (or token ids) as a vector: float32 (n_embd,); with pooling "none" a row per token: (n, n_embd).

        The rows are what the last norm gives, before the output matrix; they start a new sequence.
        pooling: "mean", "last" or "cls" (first) row; None = what the file asks for, mean where it does not say.
        normalize: scaled to Euclidean length 1, so that a dot product is the cosine.
        IkpyError for a pooling of another name, no tokens, and as in `logits`.
        """
        from ikpy_llm.engine.measure import embedding

        kind = embedding.pooling_of(self.meta, self.path) if pooling is None else embedding.checked(pooling)
        tokens = self._ids("text", text, parse_special=False)
        with self._cache.lock:
            self.session.rewind(0)
            rows = self._session.hidden(tokens)
        return embedding.pooled(rows, kind, normalize)

    def perplexity(self, text: str, n_ctx: int = 512, *, n_chunks: int = -1, progress: Progress | None = None):
        """How well the model predicts a text: a measure.perplexity.Perplexity (`value`, `error`, `n_scored`, ...).

        By llama.cpp's protocol: chunks of n_ctx tokens (4 to the model's n_ctx), of each the second half scored; a
        `value` compares with others' only for the same text, vocabulary and n_ctx. n_chunks: at most so many, -1 = all.
        progress(done, total, name): after every chunk. It starts a new sequence.
        IkpyError for a text of less than 2 * n_ctx tokens, n_ctx or n_chunks out of range, and as in `logits`.
        """
        from ikpy_llm.engine.measure.perplexity import perplexity

        bos = self.vocab.bos if self.vocab.add_bos else None
        tokens = self.tokenize(text)
        with self._cache.lock:
            return perplexity(self.session, tokens, bos=bos, n_ctx=n_ctx, n_chunks=n_chunks, progress=progress)

    def sampler(
        self,
        *,
        grammar: str | None = None,
        json_schema=None,
        ignore_eos: bool = False,
        **sampling: Unpack[SamplerArguments],
    ):
        """An sampling.sampler.Sampler for one text; what `sampling` leaves open, the model file may recommend.

        sampling: fields of sampling.sampler.SamplerOptions; names, defaults and formulas are ik_llama.cpp's.
        grammar: GBNF. json_schema: text, dict or pydantic class. Both need the extra `grammar` and exclude each other.
        IkpyError for an unknown name, a value out of range, rules that cannot be read, and without the extra.
        """
        from ikpy_llm.sampling.sampler import Sampler

        recommended = {k: v for k, v in file_defaults(self.meta).items() if k not in sampling}
        if recommended and not self._told:
            self._told = True
            log.info(
                "the model file recommends: %s",
                ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in recommended.items()),
            )
        options = SamplerOptions(**recommended, **sampling)
        n_vocab = min(self.n_vocab, self.vocab.n_tokens or self.n_vocab)  # a file without tokens has only ids
        rules = None
        if grammar is not None or json_schema is not None:
            from ikpy_llm.text.grammar.grammar import rules_of

            rules = rules_of(self.vocab, grammar, json_schema, n_vocab)
        banned = self.vocab.suppressed | (self.vocab.eog if ignore_eos else set())
        return Sampler(options, n_vocab, self.vocab, banned=banned, grammar=rules)

    def generate(
        self,
        prompt: str | Ids,
        *,
        n_predict: int = -1,
        stop=(),
        grammar: str | None = None,
        json_schema=None,
        ignore_eos: bool = False,
        parse_special: bool = True,
        show_special: bool = False,
        keep: int | None = None,
        **sampling: Unpack[SamplerArguments],
    ) -> Generator[str, None, End]:
        """Continue `prompt` (text or ids); yields pieces of text as they come.

        n_predict: tokens at most; -1 = until the model ends its text or the context is full, -2 = until it is full.
        stop: texts before which the text ends. grammar (GBNF), json_schema (text, dict, pydantic class): its rules.
        ignore_eos: the model cannot end its text. parse_special: `<|...|>` in the prompt are tokens. show_special:
        those the model writes are part of the text.
        keep: when the context is full, forget the older half of the text but for so many tokens at its beginning (-1:
        the prompt) and go on; None, or with n_predict -2: end there.
        sampling: fields of sampling.sampler.SamplerOptions (temp, top_k, top_p, min_p, repeat_penalty, seed, ...).
        The generator's own value is an engine.step.conversation.End: how the text ended, and its ids.
        IkpyError at the call for a prompt that is empty or longer than the context, an n_predict or a stop of another
        kind, and as in `sampler`; while iterating if no token may follow, and as in `logits`.
        """
        tokens = self._ids("prompt", prompt, parse_special)
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

    def stream(
        self,
        tokens: Ids,
        sampler,
        *,
        n_predict: int = -1,
        ends=None,
        stops=(),
        keep: int | None = None,
        show_special: bool = False,
    ) -> Generator[str, None, End]:
        """The lower half of `generate`: tokens and a sampler that has accepted them.

        ends: ids that end a text, None: the vocabulary's; stops: texts. The rest is as in `generate`.
        """
        tokens = token_ids("tokens", tokens, self.n_vocab)
        if not hasattr(sampler, "sample"):
            refuse("sampler", sampler, "what Model.sampler returns")
        n_predict, keep = checked_n_predict(n_predict), None if keep is None else whole("keep", keep, -1)
        ends, decoder = checked_ends(ends, self.vocab.eog), self.vocab.decoder(not show_special)
        options = {"n_predict": n_predict, "ends": ends, "stops": checked_stops(stops), "keep": keep}
        return stream(self._cache, tokens, sampler, decoder=decoder, **options)

    def ends(self, stop=()) -> tuple[frozenset[int], list[str]]:
        """Ids that end a text, and the stop texts that are not such a token; stop: one text or several.

        IkpyError for a stop that is no text.
        """
        return ends_of(self.vocab, stop)

    def conversation(self, messages=(), *, template: str | None = None, tools=None, **variables) -> Conversation:
        """A step.conversation.Conversation that begins with `messages`: append one, then stream `reply(sampler)`.

        messages: as in `chat`; copied. template: a name or Jinja instead of the file's. tools: as in OpenAI's API.
        variables: what the template may read (enable_thinking, ...).
        IkpyError for messages of another form and an unknown template; its `reply` raises the rest, as `chat` does.
        """
        from ikpy_llm.text.chat.chat import chat_template

        checked_variables("variables", variables)
        tools = checked_tools(tools)
        jinja = chat_template(self.meta, self.vocab, template, bool(tools))
        return Conversation(self._cache, self.vocab, jinja, messages, tools=tools, **variables)

    def chat(
        self,
        messages: Sequence[Mapping],
        *,
        n_predict: int = -1,
        stop=(),
        tools=None,
        template: str | None = None,
        template_kwargs: Mapping | None = None,
        grammar: str | None = None,
        json_schema=None,
        ignore_eos: bool = False,
        **sampling: Unpack[SamplerArguments],
    ) -> Generator[str, None, End]:
        """The assistant's next message in pieces; `messages` as in OpenAI's API (role, content), not changed.

        template: a name or Jinja instead of the file's template; template_kwargs: what it may read besides.
        A call that continues the messages of the last one evaluates only what is new. The rest is as in `generate`,
        the generator's own value too.
        IkpyError at the call for messages of another form, an unknown template and as in `sampler`; while iterating for
        a template that refuses the messages, a conversation longer than n_ctx, and as in `generate`.
        """
        messages, variables = begun(checked(messages)), checked_variables("template_kwargs", template_kwargs)
        key = (
            template,
            as_json("tools and template_kwargs", [checked_tools(tools), variables], lambda value: shown(value, None)),
        )
        chat = self._chat
        if chat is None or chat[0] != key:
            chat = self._chat = key, self.conversation(template=template, tools=tools, **variables)
        conversation = chat[1]
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

    def while_reading(self, progress: Progress | None) -> None:
        """Call progress(done, total, name) while prompts are read, in tokens; several times a second. None: no more."""
        self._session.progress = progress

    def after_prompt(self, call: Callable[[], None]) -> None:
        """Call it once, when the next text has been read and nothing has been generated yet."""
        self._cache.after_prompt = call

    def save_session(self, path: str | os.PathLike) -> int:
        """Write the text so far (tokens and KV cache) to a file; its bytes. See docs/api.md.

        IkpyError for a file that cannot be written, and where there is no text, or `session` was used for another.
        """
        return self._cache.save(file_path("path", path))

    def load_session(self, path: str | os.PathLike) -> list[int]:
        """Go on from a file of `save_session`: its tokens; a prompt that begins like them is not read again.

        IkpyError, one line, for a file that cannot be read, is damaged, does not fit into the context, or is of another
        model, KV cache or kind of CPU.
        """
        return self._cache.load(file_path("path", path))

    def reset(self) -> None:
        """Start a new sequence, and timings (but for `load_s`) at zero."""
        with self._cache.lock:
            self.session.rewind(0)
        for t in self._session.timings.values():
            t.__init__()

    def close(self) -> None:
        """End the worker threads, close the file; computing is an IkpyError afterwards. A second call does nothing."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_) -> None:
        self.close()
