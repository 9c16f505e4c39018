"""The vocabulary of a model: text to token ids and back, built from the file's own tokens."""

import codecs
import logging
import math
import re
from dataclasses import dataclass
from functools import cached_property

from ikpy_llm.errors import IkpyError, ModelFileError, shown
from ikpy_llm.text.strings import StringArray
from ikpy_llm.text.vocab import special_ids
from ikpy_llm.text.vocab.bpe import BpeEncoder, bpe_bytes
from ikpy_llm.text.vocab.pre import pre_type
from ikpy_llm.text.vocab.special import (
    BYTE,
    CONTROL,
    NORMAL,
    OLD_NAMES,
    ROLES,
    UNKNOWN,
    USER_DEFINED,
    spaces_taken,
    special_roles,
)
from ikpy_llm.text.vocab.spm import SpmEncoder, spm_bytes
from ikpy_llm.text.vocab.ugm import UgmEncoder
from ikpy_llm.text.vocab.wpm import WpmEncoder, cleaned

log = logging.getLogger("ikpy.vocab")
_NAMED = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", float: "a list of numbers"}


@dataclass(frozen=True)
class Defaults:
    """What holds for a kind of vocabulary where the file does not say."""

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = False


KINDS = {
    "gpt2": Defaults(),
    "gemma4": Defaults(),  # gpt2 on characters
    "llama": Defaults(bos=1, eos=2, unknown=0, add_bos=True, space_prefix=True),
    "bert": Defaults(bos=101, unknown=100, add_bos=True),  # [CLS] and [UNK]; [SEP] ends every text
    "t5": Defaults(eos=1, unknown=2, add_eos=True),
}
_SEP = 102  # of bert
_SURROGATES = re.compile("[\ud800-\udfff]")
_WHITESPACE = " \t\n\r\v\f"


class Vocab:
    """Tokens of one model.

    `n_tokens`; `bos`, `eos`, `eot` ids or None; `add_bos`, `add_eos`: does encode(add_special=True) put them around the
    text (bert: [CLS] and [SEP]); `eog`: ids that end a generation; `suppressed`: ids that the file forbids to generate;
    `pieces`: texts as in the file; `kind`: tokenizer.ggml.model.
    """

    def __init__(self, meta: dict, path):
        self.path, self._meta = path, meta
        self.kind = self._get("model", str, "none")
        self.pieces = self._get("tokens", list, None) or StringArray([], "")  # an empty list may be of any type
        if not isinstance(self.pieces, StringArray):
            raise self._bad("tokens", "a list of strings")
        self.n_tokens = len(self.pieces)
        self._outside = special_ids.outside(meta)
        self.types = self._per_token("token_type", int, NORMAL)
        self._ids = dict(zip(self.pieces.raw, range(self.n_tokens), strict=True))
        self._warn_of_oddities()
        default, bert = KINDS.get(self.kind, Defaults()), self.kind == "bert"
        self._pre = None
        if self.kind in ("gpt2", "gemma4"):
            name = self._get("pre", str, None)
            self._pre = pre_type("gemma4" if self.kind == "gemma4" else name, path)
        add_bos = self._get("add_bos_token", bool, self._pre.add_bos if self._pre else default.add_bos)
        self.add_bos = add_bos or bert or (self._pre is not None and self._pre.needs_bos)
        self.add_eos = bert or self._get("add_eos_token", bool, default.add_eos)
        self._space_prefix = self.kind in ("llama", "t5") and self._get("add_space_prefix", bool, default.space_prefix)
        self.bos = self._id("bos_token_id", default.bos)
        self.eos = self._id("eos_token_id", default.eos)
        if bert:
            self.bos, self.eos = self._id("cls_token_id", self.bos), self._id("seperator_token_id", _SEP)
        self.unknown = self._id("unknown_token_id", default.unknown)
        old = {role: self._id(f"{OLD_NAMES.get(role, role)}_token_id", None) for role in ROLES}
        named = {role: self._id(f"{role}_token_id", old[role]) for role in ROLES}
        roles, self.eog = special_roles(self._ids, self.types, {"eos": self.eos, **named})
        self.eot = roles.get("eot")
        forbidden = self._get("suppress_tokens", list, [])
        if isinstance(forbidden, StringArray) or not all(type(i) is int for i in forbidden):
            raise self._bad("suppress_tokens", "a list of token ids")
        self.suppressed = {i for i in forbidden if 0 <= i < self.n_tokens}

    def __repr__(self) -> str:
        return f"<Vocab {self.kind}: {self.n_tokens} tokens, bos {self.bos}, eos {self.eos}>"

    # --- checked metadata ------------------------------------------------------------------------------------------

    def _bad(self, name: str, accepted: str) -> ModelFileError:
        key = f"tokenizer.ggml.{name}"
        if key not in self._meta:
            return ModelFileError(f"{self.path}: key '{key}' is missing; {accepted} is expected")
        return ModelFileError(f"{self.path}: key '{key}' is {shown(self._meta[key])}; {accepted} is accepted")

    def _no_tokens(self, what: str) -> IkpyError:
        return IkpyError(f"{self.path}: {what}: the file has no tokens (tokenizer.ggml.tokens); token ids are accepted")

    def _get(self, name: str, kind: type, default):
        value = self._meta.get(f"tokenizer.ggml.{name}", default)
        if value is not default and not isinstance(value, (list, StringArray) if kind is list else kind):
            raise self._bad(name, _NAMED[kind])
        return value

    def _id(self, name: str, default: int | None) -> int | None:
        if default is not None and default >= self.n_tokens:
            default = None
        if f"tokenizer.ggml.{name}" in self._outside:
            return default
        value = self._get(name, int, default)
        if isinstance(value, bool):
            raise self._bad(name, "a token id")
        return value

    def _per_token(self, name: str, kind: type, default) -> list:
        values = self._get(name, list, None)
        if values is None:
            return [default] * self.n_tokens
        if len(values) != self.n_tokens:
            key = f"tokenizer.ggml.{name}"
            raise ModelFileError(f"{self.path}: key '{key}' has {len(values)} elements for {self.n_tokens} tokens")
        if values and (isinstance(values, StringArray) or type(values[0]) is not kind):
            raise self._bad(name, f"a list of {kind.__name__}")
        return list(values)

    def _warn_of_oddities(self):
        """One line each for contents that llama.cpp reads or refuses and that make some tokens useless."""
        if len(self._ids) < self.n_tokens:
            first = next((i for i, raw in enumerate(self.pieces.raw) if raw and self._ids[raw] != i), None)
            if first is not None:
                raw = self.pieces.raw[first]
                log.warning("%s: tokens %d and %d are both %s", self.path, first, self._ids[raw], shown(raw))
        unknown = set(self.types) - set(range(BYTE + 1))
        if unknown:
            first = next(i for i, kind in enumerate(self.types) if kind in unknown)
            log.warning(
                "%s: key 'tokenizer.ggml.token_type' is %d for token %d; 0 to 6 are known, others have no text",
                *(self.path, self.types[first], first),
            )

    # --- text to ids -----------------------------------------------------------------------------------------------

    @cached_property
    def _encoder(self):
        if self._pre and self.n_tokens:
            merges = self._get("merges", list, None)
            if not isinstance(merges, StringArray):
                raise self._bad("merges", "a list of strings")
            return BpeEncoder(self._pre, self._ids, merges.raw, f"{self.path}: key 'tokenizer.ggml.merges'")
        if not self.n_tokens:
            raise self._no_tokens("text cannot be turned into tokens")
        if self.kind not in KINDS:
            raise IkpyError(
                f"{self.path}: text cannot be turned into tokens: key 'tokenizer.ggml.model' is {shown(self.kind)}, "
                f"with {self.n_tokens} tokens; accepted: {', '.join(KINDS)}"
            )
        if self.kind == "bert":
            if self.unknown is None:
                raise self._bad("unknown_token_id", "a token id")
            lowercase = self._get("normalizer.lowercase", bool, True)
            return WpmEncoder(
                self.pieces.raw, self.unknown, lowercase, self._get("normalizer.strip_accents", bool, lowercase)
            )
        if "tokenizer.ggml.scores" not in self._meta:
            raise self._bad("scores", "a list of float")
        scores = self._per_token("scores", float, 0.0)
        if not math.isfinite(sum(scores)):
            wrong = math.isnan if self.kind == "llama" else lambda score: not math.isfinite(score)
            for i in filter(lambda i: wrong(scores[i]), range(self.n_tokens)):
                key = f"{self.path}: key 'tokenizer.ggml.scores'"
                raise ModelFileError(f"{key} has {scores[i]} for token {i}; finite numbers are accepted")
        if self.kind == "llama":
            return SpmEncoder(self.pieces.raw, scores, self._ids, self.unknown)
        if self.unknown is None:
            raise self._bad("unknown_token_id", "a token id")
        return UgmEncoder(
            self.pieces.raw,
            scores,
            self.types,
            self.unknown,
            self._charsmap(),
            self._space_prefix,
            self._get("remove_extra_whitespaces", bool, False),
            str(self.path),
        )

    def _charsmap(self) -> bytes:
        values = self._get("precompiled_charsmap", list, [])
        if isinstance(values, StringArray) or not all(isinstance(v, int) and -128 <= v < 256 for v in values):
            raise self._bad("precompiled_charsmap", "a list of bytes")
        return bytes(v & 255 for v in values)

    @cached_property
    def _special(self) -> dict[str, list[tuple[int, str, int, bool, bool, bool]]]:
        """(order, text, id, only when special tokens are parsed, takes spaces before it, after it) by text[:4].

        The order is that of lengths, the longest first.
        """
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        found = [i for i, kind in enumerate(self.types) if kind in kinds and self.pieces.raw[i]]
        before, after = spaces_taken(self._meta, self.kind)
        rows = {}
        for order, i in enumerate(sorted(found, key=lambda i: -len(self.pieces.raw[i]))):
            text = self.pieces.raw[i].decode("utf-8", "replace")
            takes = after and text not in ("<unk>", "<s>", "<|endoftext|>")
            rows.setdefault(text[:4], []).append((order, text, i, self.types[i] != USER_DEFINED, text == before, takes))
        return rows

    def _parts(self, text: str, parse_special: bool) -> list[str | int]:
        """`text` cut at its special tokens: pieces of text, and ids. A longer token wins wherever it stands."""
        parts = [text] if text else []
        # a vocabulary may have thousands: what begins with four letters that the text lacks is not looked for
        rows = sorted(row for beginning, rows in self._special.items() if beginning in text for row in rows)
        for _, token, i, is_control, left_strip, right_strip in rows:
            if (is_control and not parse_special) or token not in text:
                continue
            cut = []
            for part in parts:
                pieces = part.split(token) if isinstance(part, str) else [part]
                for k, piece in enumerate(pieces):
                    if k:
                        cut.append(i)
                        piece = piece.lstrip(_WHITESPACE) if right_strip else piece
                    if left_strip and k < len(pieces) - 1:
                        piece = piece.rstrip(_WHITESPACE)
                    if piece != "":
                        cut.append(piece)
            parts = cut
        return parts

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of `text`; IkpyError for a kind of vocabulary we cannot encode.

        `add_special` adds what the model wants around a text, `parse_special` reads `<|...|>` as tokens.
        """
        encoder = self._encoder
        out = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after_special = True
        for part in self._parts(_SURROGATES.sub("\ufffd", text), parse_special):
            if isinstance(part, int):
                out.append(part)
            else:
                prefix = self._space_prefix and after_special and self.kind == "llama"  # t5's encoder does it itself
                out += encoder.encode(" " + part if prefix else part)
            after_special = isinstance(part, int)
        if add_special and self.add_eos and self.eos is not None:
            out.append(self.eos)
        if add_special and text:
            self._warn_of_two(self.bos if self.add_bos else None, out[:2], "begins")
            self._warn_of_two(self.eos if self.add_eos else None, out[-2:], "ends")
        return out

    def _warn_of_two(self, added: int | None, ids: list[int], where: str) -> None:
        """`added`: the token that was put where the text already had one; `ids`: the two that are there."""
        if added is not None and ids == [added, added]:
            name = shown(self.pieces[added])
            log.warning("the text %s with two %s: the model asks for one, so leave it out of the text", where, name)

    def starts_special(self, text: str) -> bool:
        """Does `text` begin with a special token? Then its tokens do not depend on what stands before it."""
        parts = self._parts(text, True)
        return bool(parts) and isinstance(parts[0], int)

    # --- ids to text -----------------------------------------------------------------------------------------------

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """What a token adds to a text; control tokens add nothing unless `skip_special` is False."""
        if not 0 <= token < self.n_tokens:
            raise IkpyError(f"token {token} does not exist; the vocabulary has {self.n_tokens}")
        kind, piece = self.types[token], self.pieces.raw[token]
        if kind in (UNKNOWN, CONTROL):
            return b"" if skip_special else piece
        if kind == NORMAL:
            return bpe_bytes(piece) if self._pre and not self._pre.raw else spm_bytes(piece)
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)]) if re.fullmatch(rb"<0x[0-9A-Fa-f]{2}>", piece) else piece
        return piece if kind == USER_DEFINED else b""

    def decode(self, ids, skip_special: bool = True) -> str:
        """The text of `ids`; the space that encode() puts before a text is taken away, bad UTF-8 becomes U+FFFD."""
        ids = list(ids)
        if ids and not self.n_tokens:
            raise self._no_tokens("ids cannot be turned into text")
        pieces = [self.token_bytes(token, skip_special) for token in ids]
        if self._space_prefix and ids:
            first = 1 if skip_special and ids[0] == self.bos and len(ids) > 1 else 0
            if self.types[ids[first]] in (NORMAL, USER_DEFINED):
                pieces[first] = pieces[first].removeprefix(b" ")
        text = b"".join(pieces).decode("utf-8", "replace")
        return cleaned(text) if self.kind == "bert" else text

    def decoder(self, skip_special: bool = True) -> "StreamDecoder":
        """A detokenizer for ids that arrive one by one and continue a text."""
        return StreamDecoder(self, skip_special)


class StreamDecoder:
    """Turns ids into text as they come; a character whose bytes are spread over tokens appears with its last one."""

    def __init__(self, vocab: Vocab, skip_special: bool):
        self._vocab, self._skip_special = vocab, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes, perhaps empty; always where the vocabulary has no tokens."""
        if not self._vocab.n_tokens:
            return ""
        return self._utf8.decode(self._vocab.token_bytes(token, self._skip_special))

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", True)


def load_vocab(meta: dict, path) -> Vocab:
    """The vocabulary in the metadata of the file `path`. ModelFileError where its keys contradict each other.

    A kind of vocabulary that we cannot encode is an IkpyError at the first encode(), not here.
    """
    return Vocab(meta, path)
