"""Grammars in GBNF: what is read, what is refused, and that llguidance accepts the texts of a grammar and no others."""

import itertools
import random

import pytest

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.grammar import gbnf
from ikpy_llm.text.grammar.lark import to_lark

END = 256
# Grammar, texts of it, texts that are not.
CASES = {
    "unicode escapes": (r'root ::= "\u00e9" "\U0001F600" [\u00e0-\u00ff]?', ["é😀", "é😀ü"], ["e😀", "é", "é😀u"]),
    "names that begin with a digit": ("root ::= 1st 2-nd\n1st ::= [a]\n2-nd ::= [b]", ["ab"], ["a", "b"]),
    "names of Lark": ('root ::= start STRING\nstart ::= "a"\nSTRING ::= "b"', ["ab"], ["a"]),
    "names that differ by case": ('root ::= x X xX x-X x_X\nx ::= "a"\nX ::= "b"\nxX ::= "c"\nx-X ::= "d"\nx_X ::= "e"',
        ["abcde"], ["aacde", "bacde"]),
    "names that differ by case, in circles": ('root ::= x | X\nx ::= "(" X ")" | "1"\nX ::= "[" x "]" | "2"',
        ["1", "2", "(2)", "[1]", "([1])"], ["(1)", "[2]"]),
    "none": ('root ::= "x"{0} "y"{0,0} ("a" "b"){0} "z"', ["z"], ["xz", "yz", "abz"]),
    "only none": ('root ::= "x"{0}', [""], ["x"]),
    "numbers of repetitions": ('root ::= "x"{0,2} "y"{2,} "z"{3} "a"{1,1} [b]{ 1 , 2 }', ["yyzzzab", "xxyyyzzzabb"],
        ["yzzzab", "xxxyyzzzab", "yyzzab", "yyzzza"]),
    "repetitions of repetitions": ('root ::= ("a"?)* "b"+? "c" {2} *', ["", "aab", "acc", "b", "cccc"], ["c", "ba"]),
    "a whole text is repeated": ('root ::= "ab"+', ["ab", "abab"], ["abb", "aab"]),
    "alternatives on lines": (
        'root ::= "a"\n  | "b" # one\n\n  # two\n  |\n "c"\nx ::= "d"', ["a", "b", "c"], ["d", "ab"]),
    "lines in groups": (
        'root ::= (\r\n  "a" # one )\r\n  "b"\r\n  | "c"\r\n)+ "."\r\n# end', ["ab.", "cab."], ["a.", "ab"]),
    "an empty alternative": ('x ::= "b" ( | "c")\nroot ::= x | ', ["", "b", "bc"], ["c"]),
    "an empty text": ('root ::= "" ("" | "a")* ""', ["", "a", "aa"], ["b"]),
    "comments": ('# one ::= "x"\nroot ::= "#" # not "x"\n  # three\n', ["#"], ["x", ""]),
    "escapes": (
        r'root ::= "\x41\"\\\n\t\r\[\]" [\]\\\x62\-]', ['A"\\\n\t\r[]b', 'A"\\\n\t\r[]]', 'A"\\\n\t\r[]-'], ['A"']),
    "ranges": ("root ::= [a-c^-] [-x] [^a-c\\n] [a-]", ["--x-", "^xé-", "bx\ra"], ["d-x-", "a-a-", "a-\n-"]),
    "any character": ("root ::= . .", ["\n😀", "aé"], ["a", "abc"]),
    "what could be read further": ('root ::= [a-z]* "z"', ["z", "abz", "zzz"], ["ab", ""]),
    "the same in a circle": ('root ::= [^<]* ("<" root ">")?', ["abc", "a<b>", "a<b<c>>", "a>"], ["a<"]),
    "words and names": ('root ::= "if" s | [a-z]+\ns ::= "(" s ")" | [a-z]', ["if(x)", "ifxy", "i"], ["if(xy)"]),
    "recursion on the left": (
        'root ::= root "+" t | t\nt ::= [0-9]+ | "(" root ")"', ["1+2", "(1+23)+4"], ["1+", "(1"]),
    "recursion in the middle": ('root ::= ("(" root ")")*', ["", "()", "(()())()"], ["(", ")("]),
    "the last rule of a name": ('root ::= a\na ::= "x"\na ::= "y"', ["y"], ["x"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def accepts():
    """accepts(grammar, text): is it one of the grammar's texts? Every byte is a token."""
    lib = pytest.importorskip("llguidance")

    class Bytes:
        eos_token_id, bos_token_id, special_token_ids = END, None, (END,)
        tokens = (*(bytes([i]) for i in range(256)), b"<end>")

        def __call__(self, text):
            return list(text.encode() if isinstance(text, str) else text)

    tokenizer = lib.LLTokenizer(lib.TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END])

    def call(lark: str, text: str) -> bool:
        matcher = lib.LLMatcher(tokenizer, lib.grammar_from("lark", lark), log_level=0)
        assert not matcher.is_error(), matcher.get_error() + lark
        return (
            all(not matcher.is_stopped() and matcher.consume_token(b) for b in text.encode()) and matcher.is_accepting()
        )

    return call


@pytest.mark.parametrize("name", CASES)
def test_texts_of_a_grammar(name, accepts):
    grammar, good, bad = CASES[name]
    lark = to_lark(grammar)
    assert [text for text in good if not accepts(lark, text)] == []
    assert [text for text in bad if accepts(lark, text)] == []


def test_thousands_of_alternatives(accepts):
    words = [f"{i * 7919 % 100_003:05d}" for i in range(3000)]
    choice = " | ".join(f'"{word}"' for word in words)
    for grammar in (f"root ::= {choice}", f'root ::= "(" root ")" | word\nword ::= {choice}'):
        lark = to_lark(grammar)
        assert accepts(lark, words[0]) and accepts(lark, words[-1]) and not accepts(lark, "99999x")


def texts(rules: dict, length: int, letters: str) -> set[str]:
    """All texts of a grammar up to a length, from the definition alone."""
    all_texts = ["".join(t) for n in range(length + 1) for t in itertools.product(letters, repeat=n)]
    known = {(name, text): False for name in rules for text in all_texts}

    def matches(tree, text: str) -> bool:
        if isinstance(tree, gbnf.Rule):
            return known[tree.name, text]
        if isinstance(tree, gbnf.Text):
            return text == tree.text
        if isinstance(tree, gbnf.Chars):
            return len(text) == 1 and any(low <= ord(text) <= high for low, high in tree.ranges)
        if isinstance(tree, gbnf.Choice):
            return any(matches(item, text) for item in tree.items)
        if isinstance(tree, gbnf.Sequence):
            if not tree.items:
                return not text
            rest = gbnf.Sequence(tree.items[1:])
            return any(matches(tree.items[0], text[:i]) and matches(rest, text[i:]) for i in range(len(text) + 1))
        if tree.high == 0 or (not text and tree.low == 0):
            return not text
        low, high = max(tree.low - 1, 0), None if tree.high is None else tree.high - 1
        if not text:
            return matches(tree.item, "")
        if tree.low > 0 and matches(tree.item, "") and matches(gbnf.Repeat(tree.item, low, high), text):
            return True
        again = gbnf.Repeat(tree.item, low, high)
        return any(matches(tree.item, text[:i]) and matches(again, text[i:]) for i in range(1, len(text) + 1))

    before = None
    while before != sum(known.values()):  # recursive rules: until nothing new is found
        before = sum(known.values())
        for name, text in known:
            known[name, text] = known[name, text] or matches(rules[name], text)
    return {text for text in all_texts if known["root", text]}


def random_expression(rng: random.Random, depth: int) -> str:
    kind = rng.choice("ttccrrr" if depth == 0 else "tcrsssaamm")
    if kind == "t":
        return f'"{"".join(rng.choice("ab") for _ in range(rng.randint(1, 3)))}"'
    if kind == "c":
        return rng.choice(["[a]", "[ab]", "[^a]", "."])
    if kind == "r":
        return rng.choice(["root", "x", "y"])
    parts = [random_expression(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    if kind == "s":
        return " ".join(parts)
    if kind == "a":
        return f"({' | '.join(parts)})"
    return f"({parts[0]}){rng.choice(['*', '+', '?', '{2}', '{1,2}', '{0}'])}"


@pytest.mark.parametrize("seed", range(60))
def test_random_grammars_against_the_definition(seed, accepts):
    rng = random.Random(seed)
    rules = {"root": "a", "x": "b", "y": "a"}
    grammar = "".join(f'{name} ::= {random_expression(rng, 2)} | "{c}"\n' for name, c in rules.items())
    want = texts(gbnf.parse(grammar), 4, "ab")
    lark = to_lark(grammar)
    found = {text for n in range(5) for text in map("".join, itertools.product("ab", repeat=n)) if accepts(lark, text)}
    assert found == want, f"{grammar}\n{lark}"


@pytest.mark.parametrize(
    ("grammar", "part"),
    [
        ("", "no rule called 'root'"),
        ('x ::= "a"', "no rule called 'root'"),
        ('root ::= "a"\n\n  nowhere', "line 3: expected ::="),
        ('root ::= "a"\nx ::= y', "line 2: there is no rule called 'y'"),
        ("root ::= (", "line 1: expected .* the end"),
        ('root ::= "a" )', "expected an element of a rule or the end of the line"),
        ('root ::= "a', "expected '\"'|expected \""),
        ("root ::= [a", "expected ]"),
        ("root ::= []", "without any character"),
        ("root ::= [b-a]", "'b' to 'a'"),
        (r'root ::= "\q"', "punctuation"),
        (r'root ::= "\x4"', "2 hexadecimal digits"),
        (r'root ::= "\ud83d"', "no character of Unicode"),
        (r'root ::= "\U00110000"', "no character of Unicode"),
        ('root ::= "a"{2,1}', "ends below its beginning"),
        ('root ::= "a"{,1}', "expected a number"),
        ('root ::= "a"{99999}', "up to 10000"),
        ("root ::= *", "before *"),
        ("root ::= <[x]>", "has a number"),
        ("root ::= " + "(" * 200, "100 deep"),
        ("root ::= r0\n" + "".join(f"r{i} ::= [a] r{i + 1}\n" for i in range(5000)) + "r5000 ::= [b]", "600 deep"),
        ("root ::= [a]" + "*" * 500, "repetitions of repetitions"),
        ("root ::= [a] #" + "x" * 1_000_000, "1000000"),
    ],
)  # fmt: skip
def test_mistakes(grammar, part):
    with pytest.raises(IkpyError, match=part) as caught:
        to_lark(grammar)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
