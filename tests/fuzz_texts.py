"""Fuzz of what strangers write besides models: grammars, schemas, templates; and of files of ours."""

from __future__ import annotations

import json
import struct
import zlib

from fuzz_case import Case, Wrong, kind, model_of, shared

from ikpy_llm.kernels.compiler import jit

# ---- texts of strangers
GBNF = (
    'root ::= "yes" | "no" thing{2,3}\nthing ::= [a-z]+ (" " thing)? "\\n"\n',
    'root ::= (expr "=" term)+\nexpr ::= term ([-+*/] term)*\nterm ::= num | "(" expr ")"\nnum ::= [0-9]+\n',
    'root ::= [^\\x00-\\x1f"\\\\]* "\\u00e9" . # comment\n',
    '%llguidance {}\nstart: /a(b|c)*/ other\nother: "x"\n',
)
SCHEMAS = (
    '{"type":"object","properties":{"a":{"type":"string","maxLength":4},"b":{"$ref":"#/$defs/x"}},"required":["a"],'
    '"$defs":{"x":{"type":"array","items":{"type":"integer","minimum":1,"maximum":9},"minItems":1}}}',
    '{"anyOf":[{"enum":["x",1,null]},{"type":"string","pattern":"^a+$","format":"date"}],"uniqueItems":true}',
    '{"const":{"a":[1,2,{"b":"c"}]}}',
    '{"type":["number","boolean"],"multipleOf":0.5,"exclusiveMinimum":-3}',
)
BITS = (
    '"',
    "\\",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "*",
    "+",
    "?",
    "|",
    "::=",
    "\n",
    "root",
    "#",
    "{0,9999}",
    "-",
    "^",
    "é",
    "$ref",
)
BITS += (
    ",",
    ":",
    "null",
    "1e999",
    "-1",
    "true",
    "type",
    "allOf",
    "\\u",
    "\\x",
    "/",
    "%",
    "0",
    "<",
    ">",
    "<[1]>",
    ".",
    "\x00",
)


def spoil_text(rng, text: str, bits=BITS) -> str:
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at, what = rng.randrange(len(text) + 1), rng.randrange(4)
        if what == 0:
            text = text[:at] + rng.choice(bits) + text[at:]
        elif what == 1:
            text = text[:at] + text[at + rng.randint(1, 5) :]
        elif what == 2:
            end = rng.randrange(at, len(text) + 1)
            text = text[:end] + text[at:end] * rng.choice((1, 2, 40)) + text[end:]
        else:
            text = text[:at] + rng.choice(bits) + text[at + 1 :]
    return text[:20_000]


@kind
def grammar(c: Case) -> None:
    """Grammars and schemas; what may come next, and a text that follows."""
    model = shared(c)
    is_schema = c.often(0.5)
    text = spoil_text(c.rng, c.rng.choice(SCHEMAS if is_schema else GBNF))
    rules = {"json_schema": text} if is_schema else {"grammar": text}
    ended = list(model.generate([1], n_predict=12, temp=c.rng.choice((0, 2.0)), seed=c.seed, **rules))
    if not all(isinstance(piece, str) for piece in ended):
        raise Wrong("pieces that are no text")


JINJA = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "for m in messages",
    "endfor",
    "if",
    "else",
    "endif",
    "m.role",
    "m['content']",
    "loop",
)
JINJA += (
    "range(10**9)",
    "| tojson",
    "| trim",
    ".__class__",
    "'x' * 99999999",
    "raise_exception('a\nb')",
    "namespace()",
    "set a = ",
)
JINJA += (
    "messages[5].x.y",
    "1/0",
    "a.b.c()",
    "macro f(x)",
    "endmacro",
    "strftime_now('%Y')",
    "- ",
    "~",
    "|",
    "tools",
    "[::2]",
)


@kind
def template(c: Case) -> None:
    """Chat templates and messages."""
    from ikpy_llm.text.chat.templates import TEMPLATES

    model = shared(c)
    text = c.rng.choice((*TEMPLATES.values(), model.meta["tokenizer.chat_template"]))
    text = spoil_text(c.rng, text, JINJA)
    roles = ("user", "assistant", "system", "tool", "developer", "x", "")
    contents = ("hi", "", "<|end|>", None, [{"type": "text", "text": "a"}], [{}], 3, "é" * 100, "{{ 1/0 }}")
    messages = [
        {
            "role": c.rng.choice(roles[:2] if c.often(0.7) else roles),
            "content": c.rng.choice(contents[:3] if c.often(0.7) else contents),
        }
        for _ in range(c.rng.randrange(4))
    ]
    try:
        list(model.chat(messages, template=text, n_predict=2, temp=0))
    finally:
        model._chat = None  # the process of the template ends with the conversation


# ---- files of ours
@kind
def session_file(c: Case) -> None:
    """Files of save_session: what is read back goes on with the same bytes, or is refused."""
    model = shared(c)
    text = c.tokens(c.rng.choice((1, 5, 40, 200)))
    list(model.generate(text, n_predict=1, temp=0))
    path = c.folder / "session"
    model.save_session(path)
    expected = list(model.generate([*text, 1], n_predict=3, temp=0))
    blob = bytearray(path.read_bytes())
    what, n = c.rng.randrange(6), len(blob)
    if what == 0:
        blob[c.rng.randrange(n)] ^= 1 << c.rng.randrange(8)
    elif what == 1:
        del blob[c.rng.randrange(n) :]
    elif what == 2:
        blob += bytes(c.rng.randrange(1, 99))
    elif what == 3:  # the header, with a right checksum
        size = struct.unpack_from("<I", blob, 12)[0]
        head = json.loads(blob[16 : 16 + size])
        key = c.rng.choice(list(head))
        head[key] = c.rng.choice((0, -1, 1 << 31, 1 << 80, None, [], {}, "x", True, 1.5, head[key], [head[key]] * 2))
        raw = json.dumps(head).encode()
        blob = blob[:12] + struct.pack("<I", len(raw)) + raw + blob[16 + size : -4]
        blob += struct.pack("<I", zlib.crc32(blob))
    elif what == 4:  # cells, with a right checksum
        at = c.rng.randrange(n // 2, n - 4)
        blob[at : at + 2] = b"\x00\x7e"
        blob[-4:] = struct.pack("<I", zlib.crc32(blob[:-4]))
    path.write_bytes(blob)
    model.reset()
    if c.often(0.2):
        model = model_of(c, n_ctx=512, threads=2)
    try:
        found = model.load_session(path)
        if found[: len(text)] != text[: len(found)]:
            raise Wrong(f"tokens {found[:9]} for {text[:9]}")
        got = list(model.generate([*text, 1], n_predict=3, temp=0))
    finally:
        if model is not shared(c):
            model.close()
    if got != expected and what not in (0, 4):
        raise Wrong(f"{got} after a session was read, {expected} before")


@kind
def object_file(c: Case) -> None:
    """Files of compiled kernels: the code that was written, or nothing."""
    path = (
        jit.cache_path(jit.Kernel("rows.rowwise.add"))
        if c.often(0.5)
        else c.rng.choice(sorted(jit.cache_dir().glob("*.o"))[:50])
    )
    if not path.exists():
        return
    blob, copy = path.read_bytes(), c.folder / path.name
    right = jit.read_object(path)
    odd = bytearray(blob)
    for _ in range(c.rng.choice((0, 1, 3))):
        at = c.rng.choice((c.rng.randrange(100), c.rng.randrange(len(odd) + 1)))
        what = c.rng.randrange(4)
        if what == 0 and odd:
            odd[at % len(odd)] ^= 1 << c.rng.randrange(8)
        elif what == 1:
            del odd[at:]
        elif what == 2:
            odd += bytes(c.rng.randrange(1, 50))
        else:
            odd[at:at] = c.rng.randbytes(3)
    copy.write_bytes(odd)
    found = jit.read_object(copy)
    if found is not None and (found != right or odd != blob):
        raise Wrong(f"{path.name}: damaged, and read")
