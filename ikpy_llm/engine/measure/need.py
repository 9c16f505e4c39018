"""What a step needs at least: bytes to read and multiply-adds, by the rate at which this machine does them."""

from __future__ import annotations

from dataclasses import dataclass

from ikpy_llm.engine.graph.graph import OUTPUTS, TOKENS
from ikpy_llm.engine.program.records import Record
from ikpy_llm.kernels.derive import roof


@dataclass(frozen=True)
class Need:
    """bytes and macs of weights; bytes of keys and values, and attention's multiply-adds by the rate they go at."""

    bytes: int
    macs: int
    kv_bytes: int
    attention: dict[str, int]

    def seconds(self, rates: dict[str, float]) -> float:
        """Time at these rates ({"gbps", "gmacs", ...}, roof.measure): that of the weights and then that of attention,
        each bound by what takes longer, its bytes or its products.
        """
        products = sum(n / rates[name] for name, n in self.attention.items())
        weights = max(self.bytes / rates["gbps"], self.macs / rates["gmacs"])
        return (weights + max(self.kv_bytes / rates["gbps"], products)) / 1e9


def product_classes(record: Record) -> tuple[int, int] | None:
    """Classes of products (roof.py) with keys and with values; None of a record that is not attention."""
    if record.op != "attend":
        return None
    how = dict(record.kernel.params)
    if record.kernel.path != "attention.flash.attend":
        return roof.FLOAT, roof.FLOAT  # -fa off
    k = how.get("k_type", "f16")
    return roof.attention_classes(k, k if how.get("latent") else how.get("v_type", "f16"))


def attention_products(record: Record, rows: int, position: int) -> dict[str, int]:
    """Multiply-adds of an attention record by rate, for a step of `rows` rows after `position` older ones."""
    how, macs = dict(record.kernel.params), record.cost.of(rows, position)[0] // 2
    dims, names = (how["k_dim"], how["v_dim"]), map(roof.rate_name, product_classes(record))
    return sums(*({name: macs * dim // sum(dims)} for name, dim in zip(names, dims, strict=True)))


def sums(*parts: dict[str, int]) -> dict[str, int]:
    """Multiply-adds by rate of all parts."""
    return {name: sum(part.get(name, 0) for part in parts) for name in dict.fromkeys(n for part in parts for n in part)}


def classes_of(records) -> tuple[int, ...]:
    """Every class of attention's products in a program."""
    return tuple(dict.fromkeys(kind for r in records for kind in product_classes(r) or ()))


def of_step(session, n: int, position: int, n_outputs: int) -> Need:
    """A step of n tokens after `position` older ones, with logits of n_outputs of them. Of experts a token's weights
    are those it uses, those of a longer step all.
    """
    records, rows = session.program("gen" if n == 1 else "prompt").records, {TOKENS: n, OUTPUTS: n_outputs}
    matrices = [r for r in records if r.op.startswith("matmul") and rows[r.rows]]
    macs = sum(r.cost.of(rows[r.rows], position)[0] for r in matrices) // 2
    attention = sums(*(attention_products(r, n, position) for r in records if r.op == "attend"))
    return Need(sum(r.cost.bytes_once for r in matrices), macs, session.kv.seen_bytes(position + n), attention)
