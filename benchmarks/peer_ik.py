"""llama-bench's procedure on ik_llama.cpp, through the C library in the wheel `ik-llama-cpp-python`.

Run as a process of its own by compare_peer.py, so that two engines never share threads: prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model")
    for name in ("threads", "n_prompt", "n_gen", "repetitions", "n_ubatch", "repack"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    from ik_llama_cpp import _ctypes_api as api

    api.llama_backend_init()
    model_params = api.llama_model_default_params()
    model_params.repack_tensors = bool(args.repack)
    model_params.use_mmap = not args.repack
    model = api.llama_model_load_from_file(args.model.encode(), model_params)
    if not model:
        raise SystemExit(f"error: ik_llama.cpp cannot load {args.model}")
    n_ctx = -(-max(args.n_prompt, args.n_gen, 1) // 256) * 256
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 2048, args.n_ubatch
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn = True
    context = api.llama_init_from_model(model, params)
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(2048, 0, 1)

    def decode(n: int, start: int) -> None:
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i] = random.randrange(n_vocab), start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == n - 1
        if api.llama_decode(context, batch):
            raise SystemExit("error: llama_decode failed")
        api.llama_get_logits_ith(context, -1)  # waits for the result

    def prompt(n: int) -> None:
        for start in range(0, n, 2048):
            decode(min(2048, n - start), start)

    def generation(n: int) -> None:
        for i in range(n):
            decode(1, i)

    found = {}
    for test, n in ((prompt, args.n_prompt), (generation, args.n_gen)):
        samples = []
        api.llama_kv_cache_clear(context)
        if n:
            test(1 if test is generation else min(n, args.n_ubatch))  # warm-up
        for _ in range(args.repetitions if n else 0):
            api.llama_kv_cache_clear(context)
            started = time.perf_counter()
            test(n)
            samples.append(n / (time.perf_counter() - started))
        found[f"{'pp' if test is prompt else 'tg'}{n}"] = samples
    print(json.dumps(found))


if __name__ == "__main__":
    main()
