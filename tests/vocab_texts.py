"""Random texts of what tokenizers treat differently, for comparisons of one way to encode with another."""

import random

RANGES = """20-7e a0-24f 250-2af 300-36f 370-3ff 400-52f 530-58f 590-5ff 600-6ff 900-97f 980-9ff b80-bff e00-e7f e80-eff
1000-109f 10a0-10ff 1100-11ff 1780-17ff 1e00-1fff 2000-206f 2070-209f 20a0-20cf 20d0-20ff 2100-214f 2150-218f 2190-23ff
2460-24ff 2580-25ff 2c00-2c7f 2e00-2e7f 3000-303f 3040-30ff 3130-318f 31f0-33ff 3400-34ff 4e00-9fff a640-a69f a720-a7ff
aa60-aa7f ac00-d7a3 e000-e00f f900-faff fb00-fdff fe00-fe6f ff00-ffef fff9-ffff 10000-100ff 10400-1044f 1d400-1d7ff
1e900-1e95f 1f000-1faff 20000-200ff e0000-e007f 10fff0-10ffff"""
RANGES = [tuple(int(end, 16) for end in pair.split("-")) for pair in RANGES.split()]
SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2009\u2028\u202f\u3000\ufeff\u200b"
WORDS = """the The THE of and beginning GOD earth naïve Café İstanbul ŞEKER straße Σίσυφος привет Москва
שלום العربية हिन्दी ไทย 한국어 漢字 かな カナ camelCase HTTPServer snake_case x1 e2e4 don't I'll we've
they're it's O'Neil 'tis ’s 'S 'LL 'Re 'ſ foo(bar); a.b.c == != -> => /* */ // ... --- ___ ``` "quoted"
$9.99 50% #tag @name http://x.org/?q=1&r=2 C:\\dir \\n {"a":[1]} ﬁne ½ ² Ⅷ ٣٤٥ १२३ １２３ e\u0301
o\u0302\u0301 \u0301x 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 1️⃣ \u202ertl <s> </s> <unk> <0x41> [UNK] [MASK]
<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|end|> <｜end▁of▁sentence｜> <start_of_turn> <mask> ▁
▁▁the Ġ Ċ Ã""".split()


def _piece(rng: random.Random, more: list[str]) -> str:
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(WORDS)
    if kind == 3:
        return "".join(rng.choices(SPACES[:4], k=rng.choice((1, 1, 2, 3, 7, 20))))
    if kind == 4:
        return "".join(rng.choices(SPACES, k=rng.randint(1, 4)))
    if kind == 5:
        return "".join(rng.choices("0123456789", k=rng.choice((1, 2, 3, 4, 5, 6, 7, 12, 30))))
    if kind == 6:
        return rng.choice("!?.,;:-=_*#'\"`~^|\\/()[]{}<>$%&+@…—“”‘’。、！") * rng.choice((1, 1, 2, 3, 4, 9, 33))
    if kind == 7:
        return chr(rng.choice((*range(32), *range(0x7F, 0xA0))))
    if kind == 8:
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
    if kind == 9:
        return rng.choice("aehlnorst ") * rng.choice((1, 2, 3, 5, 17, 60)) + rng.choice(WORDS)
    if kind == 10 and more:
        return rng.choice(more)
    return rng.choice(WORDS) + " " + rng.choice(WORDS)


def random_text(rng: random.Random, n_pieces: int, more: list[str] = ()) -> str:
    """n_pieces words, runs of spaces, digits or signs, controls, and letters of all scripts; `more`: other words."""
    return "".join(_piece(rng, more) + rng.choice(("", "", " ")) for _ in range(n_pieces))
