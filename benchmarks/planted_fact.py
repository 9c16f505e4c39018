"""Does a model still find what it read thousands of tokens ago? Numbers planted in a long text, asked for one by one.

python benchmarks/planted_fact.py -m MODEL.gguf [-ctk q8_0] [-ctv q8_0] [--tokens 7500] [--depths 0.1,0.5,0.9]

The text is computed once: all questions share it. A model that follows instructions is needed. Writes
results/planted_fact.json; exits with 1 where a number was not found.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

import report

from ikpy_llm import Model

PLACES = "harbour garden market library station bridge castle mill school theatre museum tower inn chapel".split()
PEOPLE = "a baker,two sailors,an old teacher,a painter,three children,a doctor,the gardener,a tailor".split(",")
DEEDS = "spoke about,walked past,drew a picture of,waited for,remembered,wrote a letter about,laughed at".split(",")
THINGS = "the long winter,a lost dog,the price of bread,the new road,a broken clock,the river,an empty boat".split(",")
CITIES = "Lisbon Oslo Geneva Warsaw Athens Dublin Prague Vienna".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-ctk", default="q8_0", help="type of the keys in the cache")
    parser.add_argument("-ctv", default="q8_0", help="type of the values")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=7500, help="of the text")
    parser.add_argument("--depths", default="0.1,0.5,0.9", help="where in the text, 0 to 1, at most 8")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    depths = [float(d) for d in a.depths.split(",")]
    with Model.load(a.model, n_ctx=a.tokens + 512, threads=a.threads, cache_type_k=a.ctk, cache_type_v=a.ctv) as model:
        found = ask(model, *text_with_numbers(model, a.tokens, depths, a.seed), depths)
    wrong = [f"{row['city']} at depth {row['depth']}: {row['answer']!r}" for row in found if not row["found"]]
    figures = {"model": Path(a.model).name, "cache_k": a.ctk, "cache_v": a.ctv, "tokens": found[-1]["tokens"]}
    report.write("planted_fact", figures | {"questions": found})
    raise SystemExit("\n".join(wrong) if wrong else 0)


def text_with_numbers(model: Model, n_tokens: int, depths: list[float], seed: int) -> tuple[str, dict[str, int]]:
    """(text of about n_tokens, city -> its number); the sentence of the i-th city stands at depths[i]."""
    rng = random.Random(seed)
    sentences, n = [], 0
    while n < n_tokens:
        who, deed, thing, where = (rng.choice(words) for words in (PEOPLE, DEEDS, THINGS, PLACES))
        sentences.append(f"{who[0].upper()}{who[1:]} {deed} {thing} near the {where}.")
        n += len(model.tokenize(" " + sentences[-1], add_special=False))
    numbers = {city: rng.randrange(10_000, 100_000) for city in CITIES[: len(depths)]}
    places = sorted(zip(depths, numbers, strict=True), reverse=True)
    for depth, city in places:  # from the end, so that earlier places stay where they are
        sentences.insert(int(depth * len(sentences)), f"The secret number of {city} is {numbers[city]}.")
    return " ".join(sentences), numbers


def ask(model: Model, text: str, numbers: dict[str, int], depths: list[float]) -> list[dict]:
    rows = []
    for (city, number), depth in zip(numbers.items(), depths, strict=True):
        question = f"{text}\n\nWhat is the secret number of {city}? Answer with the number only."
        answer = "".join(model.chat([{"role": "user", "content": question}], n_predict=16, temp=0))
        right = str(number) in re.findall(r"\d+", answer.replace(",", ""))
        row = {"city": city, "depth": depth, "number": number, "answer": answer, "found": right}
        rows.append(row | {"tokens": len(model.cached_tokens)})
        print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
