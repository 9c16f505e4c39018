"""Every flag that llama.cpp and ik_llama.cpp have for run, bench and sweep-bench is accepted: done, or named in a note.

The rows are those of the peers' documentation; a flag is done if its field has another value then, or by being the
default.
"""

import pytest

from ikpy_llm.cli.commands import bench, run, sweep_bench
from ikpy_llm.cli.options import parse
from ikpy_llm.errors import IkpyError

# flags of the three commands: words, with | between uses
COMMON = """
-m f.gguf | --model f.gguf | -hf u/r:Q4_0 | -hfr u/r | --hf-repo u/r | -hff f.gguf | --hf-file f | -hft TOKEN
| --hf-token T | -mu URL | --model-url URL | --offline | -cl | --cache-list | -t 2 | --threads 2 | -tb 3
| --threads-batch 3 | -b 64 | --batch-size 64 | -ub 64 | --ubatch-size 64 | --ubatch_size 64 | -fa | -fa off
| -fa 0 | -fa auto | --flash-attn off | -rtr | -rtr 1 | --run-time-repack | -no-rtr | -rtr 0 | --swa-full | -v
| --verbose | --verbosity 3 | -lv 3 | --minilog | --log-file f | --log-jsonl | --log-colors auto | --no-mmap | --mlock
| -thp | -thp 1 | -lm mmap | --load-mode none | --numa distribute | --no-warmup | -ot exps=CPU
| --override-tensor exps=CPU | -cmoe | -ncmoe 3 | --n-cpu-moe 3 | --override-kv a.b=int:3 | --check-tensors | -vq
| --validate-quants | --defer-experts | --prefetch-experts | --prefetch-experts-threads 2 | -a x | --alias x
| -q | --quiet | --log-disable | --no-log | --no-perf | --perf | --list-devices | -okv a.b=int:3 | -nr | -no-fa
| -fmoe | -fmoe 1 | -no-fmoe | -mqkv | -mqkv 1 | -muge | -khad | -khad 1 | -vhad | -gr | -gr 1 | -ger | -sas
| -no-fug | -mla 3 | -amb 512 | -ser 6,1 | -ngl 99 | -ngld 9 | -sm none | -mg 0 | -ts 3,1 | -dev none | -nkvo
| -cuda graphs=0 | -op 26,1 | -ooae | --fit | --fit on | --fit-margin 512 | -smgs | -grt 1
"""
TEXT = """
-c 512 | --ctx-size 512 | -n 5 | --predict 5 | --n-predict 5 | -ctk q8_0 | --cache-type-k q8_0 | -ctv q4_0
| --rope-scaling yarn | --rope-scale 2 | --rope-freq-base 1e6 | --rope-freq-scale 0.5 | --yarn-orig-ctx 4096
| --yarn-ext-factor 1 | --yarn-attn-factor 1 | --yarn-beta-slow 1 | --yarn-beta-fast 32
| --control-vector-layer-range 1 2
| -s 1 | --seed 1 | --grammar x | --grammar-file f | -j {} | --json-schema {} | -jf f | --samplers top_k;temperature
| --sampling-seq kt | --temp 0.5 | --top-k 3 | --top-p 0.5 | --min-p 0.1 | --tfs 0.9 | --typical 0.9 | --top-n-sigma 1
| --xtc-probability 0.1 | --xtc-threshold 0.2 | --repeat-last-n 9 | --repeat-penalty 1.1 | --presence-penalty 0.1
| --frequency-penalty 0.1 | --penalize-nl | --dry-multiplier 0.8 | --dry-base 1.5 | --dry-allowed-length 3
| --dry-penalty-last-n 9 | --dry-sequence-breaker x | --mirostat 2 | --mirostat-lr 0.2 | --mirostat-ent 4
| --dynatemp-range 0.1 | --dynatemp-exp 2 | --adaptive-target 0.3 | --adaptive-decay 0.8 | --adaptive-updt-w-cur
| -l 5+1 | --logit-bias 5-inf | --ignore-eos | --cfg-scale 1 | -gan 1
| -p hello | -f file | -e | --keep 4
"""
RUN = """
--prompt hello | --file file | --escape | --no-escape | -cnv | --conversation | -no-cnv | -sys hello | -i
| --interactive | -if | --interactive-first | -r User: | --reverse-prompt User: | --in-prefix a | --in-suffix b | -mli
| --multiline-input | --chat-template chatml | --chat-template-file f | --jinja | --no-jinja | --chat-template-kwargs {}
| --reasoning-format none | -rea off | --reasoning-budget 0 | --no-display-prompt | -co | --color | --simple-io | -sp
| --special | --context-shift | --no-context-shift | --prompt-cache f | --prompt-cache-all | --prompt-cache-ro | -md f
| --model-draft f | --spec-type x
| --draft-max 8 | --draft 8 | --mmproj f | --no-cnv | --no-conversation | --in-prefix-bos | --verbose-prompt
| -spf f | --display-prompt | -f - | -st | --single-turn | -np 2 | --parallel 2 | -cb
"""
BENCH = """
-p 8 | -p 8-32*2 | -p 8,16 -p 32 | --n-prompt 8 | -n 4 | --n-gen 4 | -pg 8,4 | -gp 8,4 | -d 16 | --n-depth 16
| -ctk f16 | -ctv f16,q8_0 | --cache-type-k iq4_nl | --cache-type-v q8_KV | --v-cache-hadamard
| -tgb 1,2 | -r 3 | --repetitions 3 | -o json | -o jsonl | --output sql
| -oe md | --output-err csv | -w 0 | -w 1 | --warmup 0 | --progress | --delay 1 | --prio 1 | -C 0xf | --cpu-mask 0xf
| --cpu-strict 1 | --poll 50 | -mmp 0 | -embd 0 | -fa 1 | -fa 0,1 | -rtr 0,1 | -mla 2,3 | -ot a=CPU | --list-devices
| -nkvo 1 | -nopo 1 | -ger 1 | -sas 0 | -no-fug 1 | -no-ooae 1 | -rcache 1 | -rpc host:1 | -dio 1 | --no-host 1
| -hf u/r,v/s | --compat llama | -fitt 512 | -fitc 4096 | --threads-gen-batch 1,2 | -mqkv 1 | --mla-attn 1
"""
SWEEP = """
-nrep 2 | -wb | --warmup-batch | --sweep-stride 2 | --sweep-memory | --output-format jsonl | -o jsonl | --plot f.png
"""
# What would change the result and cannot be done.
REFUSED = """
--lora f | --lora-scaled f:0.5 | --lora-scaled f 0.5 | --control-vector f | --control-vector-scaled f 1
| -dr | --dry-run
| -ctk-first q8_0,2 | -ctk-last q8_0,2 | -ctv-first q8_0,2 | -ctv-last q8_0,2 | --cache-type-k-first q8_0,2
| --image f | --audio f | -bf f | --banned-string-file f | --cfg-negative-prompt x | --cfg-scale 2 | -embd 1 | -gan 2
"""
DEFAULTS = """--no-context-shift|-fa|-fa 1|-mla 3|-rtr|-e|--escape|-w 1|--warmup 1|--perf""".split(
    "|"
)  # given, they change nothing and say nothing


def uses(*lists):
    return [use.strip().split(" ") for text in lists for use in text.replace("\n", " ").split(" | ")]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        *((run, words) for words in uses(COMMON, TEXT, RUN)),
        *((bench, words) for words in uses(COMMON, BENCH)),
        *((sweep_bench, words) for words in uses(COMMON, TEXT, SWEEP)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__.rpartition(".")[2],
)
def test_accepted(command, words):
    before = command.Options()
    found = parse(command.Options, words, "ikpy", environ={})
    if found.notices:
        (line,) = found.notices
        assert line.endswith(": " + " ".join(words))
        found.notices = []
        assert found == before
    else:
        assert found != before or " ".join(words) in DEFAULTS


@pytest.mark.parametrize("words", uses(REFUSED), ids=" ".join)
@pytest.mark.parametrize("command", [run, bench, sweep_bench], ids=lambda c: c.__name__.rpartition(".")[2])
def test_what_would_change_the_result_is_refused(command, words):
    with pytest.raises(IkpyError, match=f"^{words[0]}.*: ikpy cannot do that, and the result would be another one"):
        parse(command.Options, [*words, "-m", "f.gguf"], "ikpy", environ={})


def test_what_only_costs_speed_is_a_note():
    """Where tensors lie, and guesses of a second model that the first one checks."""
    found = parse(run.Options, "-ot exps=CPU -md f.gguf --draft-max 8 -p x".split(), "ikpy", environ={})
    assert found.notices == [
        "ignored, they change nothing in ikpy: -ot exps=CPU",
        "ignored, ikpy cannot do that, and the text is the same without: -md f.gguf, --draft-max 8",
    ]


def test_a_recipe_of_a_model_card():
    """GPU flags, historical spellings and real options in one line; one note, and the rest as asked."""
    words = (
        "-m m.gguf -c 32768 -ctk f16 -fa -fmoe -rtr -mla 3 -amb 512 -ngl 99 -ot exps=CPU --parallel 1 -t 16 -ub 4096"
    )
    found = parse(sweep_bench.Options, words.split(), "ikpy", environ={})
    assert (found.n_ctx, found.repack, found.flash_attn, found.threads) == (32768, True, "on", 16)
    assert found.notices == [
        "ignored, they change nothing in ikpy: -fmoe, -ngl 99, -ot exps=CPU, --parallel 1",
    ]
