"""continue a prompt: text on stdout, timings on stderr"""

import dataclasses
import json
import sys

from ikpy_llm.cli import console, overrides, prompt_cache
from ikpy_llm.cli.model_file import list_cache, model_path
from ikpy_llm.cli.options import ModelOptions, flag
from ikpy_llm.cli.sampler_flags import SamplerFlags, sampling_of
from ikpy_llm.cli.text import read_file, unescape, write
from ikpy_llm.errors import IkpyError

COLOR_PROMPT, RESET = "\033[33m", "\033[0m"  # as in llama.cpp: the prompt is yellow


@dataclasses.dataclass
class Options(ModelOptions, SamplerFlags):
    """Flags of `ikpy-run`; names and defaults as in ik_llama.cpp."""

    prompt: str | None = flag(None, "-p", "--prompt", metavar="TEXT", env="", help="text to continue")
    file: str | None = flag(None, "-f", "--file", metavar="FNAME", env="", help="file with the text to continue")
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
        off=("-no-cnv", "--no-conversation"),
        help="converse in the model's chat format; -p is the first message",
    )
    system: str | None = flag(
        None, "-sys", "--system-prompt", metavar="TEXT", env="", help="system message of a conversation (implies -cnv)"
    )
    system_file: str | None = flag(
        None, "-sysf", "--system-prompt-file", metavar="FNAME", env="", help="the same from a file"
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
    reasoning_budget: int = flag(
        -1, "--reasoning-budget", metavar="N", minimum=-1, help="0 is -rea off; other numbers set no limit yet"
    )
    interactive: bool = flag(
        False, "-i", "--interactive", help="take turns in raw text: the user's comes at -r, an end or Ctrl-C"
    )
    interactive_first: bool = flag(False, "-if", "--interactive-first", help="the same, the user begins")
    reverse_prompt: list[str] = flag(
        [], "-r", "--reverse-prompt", metavar="TEXT", env="", commas=False, help="text at which the model stops"
    )
    in_prefix: str = flag("", "--in-prefix", metavar="TEXT", env="", help="put before what the user writes")
    in_suffix: str = flag("", "--in-suffix", metavar="TEXT", env="", help="put behind what the user writes")
    multiline: bool = flag(
        False, "-mli", "--multiline-input", help=r"messages of several lines; \ at a line's end ends"
    )
    color: str = flag(
        "off", "-co", "--color", choices=("on", "off", "auto"), bare="on", help="color the prompt and the user's lines"
    )
    simple_io: bool = flag(False, "--simple-io", help="no colors and no line editing")
    profile: str | None = flag(
        None, "--profile", metavar="FILE", bare="-", env="", help="show where the time goes; FILE: write it as JSON too"
    )


def main(options: Options) -> None:
    """Load the model, stream the text or converse, print the timings."""
    if options.cache_list:
        return list_cache()
    prompt, system = prompt_of(options), system_of(options)
    chat = options.conversation
    if chat is None:
        chat = not takes_turns(options) and (system is not None or options.single_turn)
    elif chat and takes_turns(options):
        raise IkpyError("-cnv and -i exclude each other")
    prompt_cache.check(options)
    if prompt is None and not (chat or takes_turns(options) or prompt_cache.exists(options.prompt_cache)):
        raise IkpyError(
            'no prompt; give -p TEXT or -f FILE, for example: ikpy-run -p "The capital of France is" -n 24; or -cnv'
        )
    sampling = sampling_of(options) | {"ignore_eos": options.ignore_eos or options.n_predict == -2}
    if options.context_shift and options.keep is None:
        options.keep = 0
    variables = template_variables(options)
    from ikpy_llm import Model

    with console.Progress() as progress:
        model = Model.load(
            model_path(options),
            n_ctx=options.n_ctx,
            threads=options.threads or 0,
            threads_batch=options.threads_batch or 0,
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
                complete(model, prompt or tokens, options, sampling)
            else:
                take_turns(model, prompt, system, options, sampling, variables, chat)
        print_timings(model.timings)
        if options.ser:
            used, n = model.session.experts_per_token, model.session.params.n_expert_used
            print(f"experts: {used:.2f} of {n} per token and layer (-ser {options.ser})", file=sys.stderr)
        if options.profile:
            from ikpy_llm.cli import bench_profile

            text = bench_profile.of_session(model.session, model.timings.n_prompt, options.profile)
            print("", text, sep="\n", file=sys.stderr)
    return None


def complete(model, prompt: str | list[int], options: Options, sampling: dict) -> None:
    """One text (or its tokens) continued."""
    pieces = model.generate(
        prompt,
        n_predict=options.n_predict,
        stop=[escaped(options, text) for text in options.reverse_prompt],
        keep=options.keep,
        show_special=options.special,
        **sampling,
    )
    if options.display_prompt:
        prompt = prompt if isinstance(prompt, str) else model.detokenize(prompt)
        write(f"{COLOR_PROMPT}{prompt}{RESET}" if colors(options) else prompt)
    try:
        for piece in pieces:
            write(piece)
    finally:
        write("\n")


def take_turns(model, prompt, system, options: Options, sampling: dict, variables: dict, chat: bool) -> None:
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
        color=colors(options),
        simple=options.simple_io,
    )
    if not chat:
        if prompt and options.display_prompt:
            write(prompt)
        chat_loop.interact(model, prompt or "", talk, options.interactive_first)
        return
    messages = [{"role": "system", "content": system}] if system else []
    template = options.chat_template
    if options.chat_template_file is not None:
        template = read_file("--chat-template-file", options.chat_template_file)
    chat_loop.converse(model, model.conversation(messages, template=template, **variables), prompt, talk)


def takes_turns(options: Options) -> bool:
    return options.interactive or options.interactive_first


def colors(options: Options) -> bool:
    """Are colors wanted, and is there a terminal to show them?"""
    return options.color != "off" and not options.simple_io and sys.stdout.isatty()


def template_variables(options: Options) -> dict:
    """What the chat template may read besides the messages."""
    if options.chat_template is not None and options.chat_template_file is not None:
        raise IkpyError("--chat-template and --chat-template-file exclude each other")
    variables = {}
    if options.reasoning != "auto" or options.reasoning_budget == 0:
        variables["enable_thinking"] = options.reasoning != "off" and options.reasoning_budget != 0
    if options.chat_template_kwargs is not None:
        try:
            given = json.loads(options.chat_template_kwargs)
        except ValueError as error:
            raise IkpyError(f"--chat-template-kwargs is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise IkpyError(f"--chat-template-kwargs is {options.chat_template_kwargs}; a JSON object is accepted")
        variables |= given
    return variables


def system_of(options: Options) -> str | None:
    """The text of -sys (with escapes resolved) or -sysf."""
    if options.system is not None and options.system_file is not None:
        raise IkpyError("-sys and -sysf exclude each other")
    if options.system_file is not None:
        return read_file("-sysf", options.system_file).removesuffix("\n")
    return None if options.system is None else escaped(options, options.system)


def prompt_of(options: Options) -> str | None:
    """The text of -p (with escapes resolved) or of -f (as it is, without the last newline); None without either."""
    if options.prompt is not None and options.file is not None:
        raise IkpyError("-p and -f exclude each other; give -p TEXT or -f FILE")
    if options.file is not None:
        return read_file("-f", options.file).removesuffix("\n")
    return None if options.prompt is None else escaped(options, options.prompt)


def escaped(options: Options, text: str) -> str:
    """A text of the command line with its escapes resolved, unless --no-escape."""
    return unescape(text) if options.escape else text


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
