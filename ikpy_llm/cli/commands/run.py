"""continue a prompt: text on stdout, timings on stderr"""

import dataclasses
import sys

from ikpy_llm import files
from ikpy_llm.cli import console, overrides, prompt_cache
from ikpy_llm.cli.model_file import listed, model_path
from ikpy_llm.cli.options import ModelOptions, automatic, flag
from ikpy_llm.cli.prompt import (
    escaped,
    lacks_format,
    may_chat,
    piped_prompt,
    print_tokens,
    prompt_of,
    system_of,
    template_of,
    template_variables,
)
from ikpy_llm.cli.sampler_flags import SamplerFlags, sampling_of
from ikpy_llm.cli.text import stream, write
from ikpy_llm.errors import IkpyError

COLOR_PROMPT, RESET = "\033[33m", "\033[0m"  # as in llama.cpp: the prompt is yellow
NO_PROMPT = (
    'no prompt; give -p TEXT or -f FILE, for example: ikpy-run -p "The capital of France is" -n 24; or -cnv to converse'
)


@dataclasses.dataclass
class Options(ModelOptions, SamplerFlags):
    """Flags of `ikpy-run`; names and defaults as in ik_llama.cpp."""

    prompt: str | None = flag(None, "-p", "--prompt", metavar="TEXT", env="", help="text to continue")
    file: str | None = flag(None, "-f", "--file", metavar="FNAME", env="", help="the text from a file, -: from stdin")
    escape: bool = flag(
        True, "-e", "--escape", off=("--no-escape",), env="", help=r"\n, \t, \\ ... in -p are escapes (default: on)"
    )
    n_predict: int = flag(
        -1,
        "-n",
        "--predict",
        "--n-predict",
        env="N_PREDICT",
        metavar="N",
        minimum=-2,
        help="tokens to generate; -1: until the model ends its text or the context is full; -2: until it is full",
    )
    n_ctx: int | None = flag(
        None,
        "-c",
        "--ctx-size",
        metavar="N",
        minimum=0,
        help="context size in tokens, 0: all the model was trained for (default: that, at most 4096)",
    )
    display_prompt: bool = flag(
        True, off=("--no-display-prompt",), env="NO_DISPLAY_PROMPT", help="do not repeat the prompt on stdout"
    )
    ignore_eos: bool = flag(False, "--ignore-eos", help="the model cannot end its text")
    keep: int | None = flag(
        None,
        "--keep",
        metavar="N",
        minimum=-1,
        help="when the context is full, go on with its first N tokens (-1: the prompt) and the newer half",
    )
    context_shift: bool = flag(
        False,
        "--context-shift",
        off=("--no-context-shift",),
        help="the same as --keep 0 where that is not given: a text longer than the context is possible (default: off)",
    )
    prompt_cache: str | None = flag(
        None,
        "--prompt-cache",
        metavar="FNAME",
        env="",
        help="file that keeps the prompt as the model has read it: a later run goes on from what it has in common",
    )
    prompt_cache_all: bool = flag(
        False, "--prompt-cache-all", env="", help="keep all of the text in it, what the model writes too"
    )
    prompt_cache_ro: bool = flag(False, "--prompt-cache-ro", env="", help="read that file only")
    special: bool = flag(False, "-sp", "--special", help="special tokens that the model writes are shown")
    conversation: bool | None = flag(
        None,
        "-cnv",
        "--conversation",
        off=("-no-cnv", "--no-cnv", "--no-conversation"),
        help="converse in the model's chat format; -p is the first message (default: on a terminal without -p)",
    )
    system: str | None = flag(
        None, "-sys", "--system-prompt", metavar="TEXT", env="", help="system message of a conversation (implies -cnv)"
    )
    system_file: str | None = flag(
        None, "-sysf", "-spf", "--system-prompt-file", metavar="FNAME", env="", help="the same from a file"
    )
    single_turn: bool = flag(False, "-st", "--single-turn", help="end after one reply (implies -cnv)")
    chat_template: str | None = flag(
        None, "--chat-template", metavar="NAME|JINJA", help="chat format instead of the file's, such as chatml"
    )
    chat_template_file: str | None = flag(None, "--chat-template-file", metavar="FNAME", help="the same from a file")
    chat_template_kwargs: str | None = flag(
        None, "--chat-template-kwargs", metavar="JSON", help="variables for the chat template"
    )
    reasoning: str = flag(
        "auto", "-rea", "--reasoning", choices=("on", "off", "auto"), help="let a model think that can be asked not to"
    )
    reasoning_budget: int = flag(-1, "--reasoning-budget", metavar="N", minimum=-1, help="0: -rea off; -1: no limit")
    interactive: bool = flag(
        False, "-i", "--interactive", help="take turns in raw text: the user's comes at -r, an end or Ctrl-C"
    )
    interactive_first: bool = flag(False, "-if", "--interactive-first", help="the same, the user begins")
    reverse_prompt: list[str] = flag(
        [], "-r", "--reverse-prompt", metavar="TEXT", env="", commas=False, help="text at which the model stops"
    )
    in_prefix: str = flag("", "--in-prefix", metavar="TEXT", env="", help="put before what the user writes")
    in_prefix_bos: bool = flag(False, "--in-prefix-bos", env="", help="with -i: BOS before that")
    in_suffix: str = flag("", "--in-suffix", metavar="TEXT", env="", help="put behind what the user writes")
    multiline: bool = flag(
        False, "-mli", "--multiline-input", help=r"messages of several lines; \ at a line's end ends"
    )
    color: str = flag(
        "off", "-co", "--color", choices=("on", "off", "auto"), bare="on", help="color the prompt and the user's lines"
    )
    simple_io: bool = flag(False, "--simple-io", help="no colors and no line editing")
    verbose_prompt: bool = flag(False, "--verbose-prompt", env="", help="show the tokens of the prompt first")
    perf: bool = flag(True, "--perf", off=("--no-perf",), env="", help="timings at the end (default: on)")
    profile: str | None = flag(
        None, "--profile", metavar="FILE", bare="-", env="", help="show where the time goes; FILE: write it as JSON too"
    )


def main(options: Options) -> None:
    """Load the model, stream the text or converse, print the timings."""
    if listed(options):
        return
    prompt, system = prompt_of(options), system_of(options)
    chat = options.conversation
    if chat is None:
        chat = not takes_turns(options) and (system is not None or options.single_turn)
    elif chat and takes_turns(options):
        raise IkpyError("-cnv and -i exclude each other")
    elif chat and options.in_prefix_bos:
        raise IkpyError("--in-prefix-bos is for -i; in a conversation the chat format puts BOS")
    prompt_cache.check(options)
    if options.profile not in (None, "-"):
        from ikpy_llm.cli.bench.profile import PROFILE

        files.check(options.profile, flag="--profile", kind=PROFILE, streams=True)
        if options.prompt_cache is not None and files.same(options.profile, options.prompt_cache):
            raise IkpyError(f"--profile and --prompt-cache name one file, {options.profile}; each needs its own")
    if prompt is None and not (chat or takes_turns(options) or prompt_cache.exists(options.prompt_cache)):
        prompt = piped_prompt()
        chat = prompt is None and may_chat(options)
        if prompt is None and not chat:
            raise IkpyError(NO_PROMPT)
    sampling = sampling_of(options) | {"ignore_eos": options.ignore_eos or options.n_predict == -2}
    if options.context_shift and options.keep is None:
        options.keep = 0
    template, variables = template_of(options), template_variables(options)
    from ikpy_llm import Model

    with console.Progress() as progress:
        model = Model.load(
            model_path(options),
            n_ctx=options.n_ctx,
            threads=automatic(options.threads),
            threads_batch=automatic(options.threads_batch),
            repack=options.repack,
            pp_requant=options.pp_requant,
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
            khad=options.khad,
            vhad=options.vhad,
            flash_attn=options.flash_attn not in ("off", "0"),
            swa_full=options.swa_full,
            mla=options.mla,
            amb=options.amb,
            ser=options.ser,
            override_kv=overrides.of(options),
            n_batch=options.batch,
            n_ubatch=options.ubatch,
            progress=progress,
        )
    with model:
        with prompt_cache.kept(model, options) as tokens:
            if not (chat or takes_turns(options)):
                complete(model, tokens if prompt is None else prompt, options, sampling)
            else:
                take_turns(model, prompt, system, options, sampling, template, variables, chat)
        told = options.perf and not options.quiet
        if told:
            print_timings(model.timings)
        if options.ser and told:
            used, n = model.session.experts_per_token, model.session.params.n_expert_used
            print(f"experts: {used:.2f} of {n} per token and layer (-ser {options.ser})", file=sys.stderr)
        if options.profile:
            from ikpy_llm.cli.bench import profile as bench_profile

            text = bench_profile.of_session(model.session, model.timings.n_prompt, options.profile)
            print("", text, sep="\n", file=sys.stderr)


def complete(model, prompt: str | list[int], options: Options, sampling: dict) -> None:
    """One text (or its tokens) continued."""
    tokens = model.tokenize(prompt, parse_special=True) if isinstance(prompt, str) else prompt
    if options.verbose_prompt:
        print_tokens(model, tokens)
    if options.conversation is None and lacks_format(model, tokens):
        console.note("the text is continued as it is; -cnv makes it a message in the chat format of the model")
    pieces = model.generate(
        tokens,
        n_predict=options.n_predict,
        stop=[escaped(options, text) for text in options.reverse_prompt],
        keep=options.keep,
        show_special=options.special,
        **sampling,
    )
    text = ""
    if options.display_prompt:
        text = prompt if isinstance(prompt, str) else model.detokenize(prompt)
        text = f"{COLOR_PROMPT}{text}{RESET}" if colors(options) else text
    try:
        stream(model, pieces, text)
    finally:
        write("\n")


def take_turns(model, prompt, system, options: Options, sampling: dict, template, variables: dict, chat: bool) -> None:
    """A conversation, in chat format or raw text."""
    from ikpy_llm.cli import chat_loop

    talk = chat_loop.Talk(
        n_predict=options.n_predict,
        sampling=sampling,
        stop=[escaped(options, text) for text in options.reverse_prompt],
        keep=options.keep,
        show_special=options.special,
        single_turn=options.single_turn,
        multiline=options.multiline,
        in_prefix=escaped(options, options.in_prefix),
        in_suffix=escaped(options, options.in_suffix),
        in_prefix_bos=options.in_prefix_bos,
        verbose_prompt=options.verbose_prompt,
        color=colors(options),
        simple=options.simple_io,
    )
    if not chat:
        shown = prompt if prompt and options.display_prompt else ""
        chat_loop.interact(model, prompt or "", shown, talk, options.interactive_first)
        return
    messages = [{"role": "system", "content": system}] if system else []
    chat_loop.converse(model, model.conversation(messages, template=template, **variables), prompt, talk)


def takes_turns(options: Options) -> bool:
    return options.interactive or options.interactive_first


def colors(options: Options) -> bool:
    """Are colors wanted, and is there a terminal to show them?"""
    return options.color != "off" and not options.simple_io and sys.stdout.isatty()


def print_timings(t) -> None:
    """Loading, prompt and generation on stderr, in the lines that scripts for ik_llama.cpp read, then the bandwidth."""
    rate = t.eval_bytes / t.eval_s / 1e9 if t.n_eval else 0.0
    lines = (
        f"       load time = {t.load_s * 1e3:10.2f} ms",
        f"prompt eval time = {_timing(t.prompt_s, t.n_prompt)}",
        f"       eval time = {_timing(t.eval_s, t.n_eval)}",
        f"      total time = {(t.prompt_s + t.eval_s) * 1e3:10.2f} ms / {t.n_prompt + t.n_eval:5d} tokens",
        f"     memory read = {rate:10.2f} GB/s in generation",
    )
    print("", *(f"main: {line}" for line in lines), sep="\n", file=sys.stderr)


def _timing(seconds: float, n: int) -> str:
    per_token, per_second = (seconds * 1e3 / n, n / seconds) if n else (0.0, 0.0)
    return (
        f"{seconds * 1e3:10.2f} ms / {n:5d} tokens ({per_token:8.2f} ms per token, {per_second:8.2f} tokens per second)"
    )
