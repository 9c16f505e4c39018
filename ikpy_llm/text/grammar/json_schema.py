"""JSON schemas for grammars: what is taken as one, what llguidance cannot enforce and is relaxed, bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ikpy_llm.arguments import as_json
from ikpy_llm.errors import IkpyError, shown

WHITESPACE = r" |\n{1,2}[ \t]{0,20}"  # between the parts of JSON, as llama.cpp has it; with more, weak models never end
MAX_SIZE = 1_000_000  # characters
MAX_REFS = 1000  # different $ref: llguidance follows them by recursion
MAX_PROPERTIES = 2000  # of one object: its time grows with their square, 1 s here
# Where schemas stand in a schema: one, a list of them, or by names.
_ONE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_ONE += ("unevaluatedItems", "unevaluatedProperties", "contentSchema")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LATE_REFS = ("$dynamicRef", "$recursiveRef")  # llguidance looks none of them up
# What llguidance reads over without a word: of today's drafts, of the third, of proposals, and of validators.
_SILENT = ("contentSchema", "contentEncoding", "contentMediaType", "extends", "disallow", "divisibleBy")
_SILENT += ("propertyDependencies", "formatMinimum", "formatMaximum", "formatExclusiveMinimum")
_SILENT += ("formatExclusiveMaximum",)
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_LOOKS = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:[=!]|<[=!])|\\[1-9]|\\k<)")  # (?=...), (?<!...), \1, \k<name>
_NEUTRAL = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}  # they forbid nothing


def as_text(schema) -> str:
    """A schema as JSON: of a text, a dictionary, True or False, or a class that has one (pydantic's, its TypeAdapter).

    IkpyError for anything else.
    """
    if isinstance(schema, str):
        return schema
    for name in ("model_json_schema", "json_schema"):
        method = getattr(schema, name, None)
        if callable(method) and not isinstance(schema, Mapping):
            try:
                schema = method()
            except Exception as error:  # of the class's own
                raise IkpyError(
                    f"json_schema: {name}() fails: {shown(' '.join(str(error).split()), 200)[1:-1]}"
                ) from None
            break
    if not isinstance(schema, dict | bool):
        schema = dict(schema) if isinstance(schema, Mapping) else schema
    if not isinstance(schema, dict | bool):
        raise IkpyError(
            f"json_schema is {shown(schema)}; a text, a dictionary or a class with model_json_schema is accepted"
        )
    return as_json("json_schema", schema)


def read(text: str) -> tuple[dict, list[str]]:
    """The schema in a text, without what llguidance refuses; names of what was left out.

    IkpyError for what is no schema, for False, which no text follows, and for one that is too large.
    """
    if len(text) > MAX_SIZE:
        raise IkpyError(f"the JSON schema has {len(text)} characters; up to {MAX_SIZE} are accepted")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IkpyError(f"the JSON schema is not JSON: {error}") from None
    if schema is False:
        raise IkpyError("the JSON schema is false, which no text follows")
    if not isinstance(schema, dict | bool):
        raise IkpyError(f"the JSON schema is {shown(text)}; an object is accepted")
    reader = _Reader()
    try:
        return reader.relaxed({} if schema is True else schema), reader.left_out
    except RecursionError:
        raise IkpyError("the JSON schema has schemas too deep in each other") from None


def without(schema: dict, message: str) -> tuple[dict, list[str]]:
    """The schema without what an error or a warning of llguidance is about, and the names of that.

    Patterns of properties that exclude each other are an error. Numbers of properties are a warning, but then it
    refuses objects that have as many.
    """
    reader = _Reader(patterns="not disjoint" not in message, numbers="min/maxProperties" not in message)
    return reader.relaxed(schema), reader.left_out


def named(warning: str) -> list[str]:
    """What a warning of llguidance is about, as in a schema."""
    if found := re.fullmatch(r"Unimplemented keys: (\[.*\])", warning):
        return json.loads(found[1])
    if found := re.fullmatch(r"Unknown format: (.*)", warning):
        return [f"format {found[1]}"]
    if warning.startswith("oneOf"):
        return ["oneOf (taken as anyOf)"]
    return [shown(" ".join(warning.split()))[1:-1]]


class _Reader:
    """Goes through a schema; `left_out`: names of what it left out."""

    def __init__(self, patterns: bool = True, numbers: bool = True):
        self.patterns, self.numbers, self.left_out, self.refs = patterns, numbers, [], set()

    def relaxed(self, schema):
        """A schema that is read, the same but for what cannot be enforced."""
        if not isinstance(schema, dict):
            return schema
        out = {}
        for key, value in schema.items():
            if key in _NEUTRAL and value is _NEUTRAL[key]:
                continue
            if key == "pattern" and isinstance(value, str) and _LOOKS.search(value):
                self._leave_out("pattern with look-around or back-references")
                continue
            if key in _LATE_REFS and not (isinstance(value, str) and value.startswith("#")):
                raise IkpyError(
                    f"the JSON schema refers to {shown(value)} ({key}); parts of itself (#...) are accepted"
                )
            if key in _SILENT:
                self._leave_out(key)
            if key in _COUNTS and isinstance(value, float) and value.is_integer():
                value = int(value)
            elif key in _NAMED and isinstance(value, dict):
                if key == "properties" and len(value) > MAX_PROPERTIES:
                    raise IkpyError(
                        f"the JSON schema has an object of {len(value)} properties; up to {MAX_PROPERTIES} are accepted"
                    )
                value = {name: self.relaxed(inner) for name, inner in value.items()}
            elif key in _LISTS and isinstance(value, list):
                value = [self.relaxed(inner) for inner in value]
            elif key in _ONE:
                value = self.relaxed(value)
            elif key == "$ref":
                if not isinstance(value, str):
                    raise IkpyError(f"the JSON schema refers to {shown(value)} ($ref); a text is accepted")
                self.refs.add(value)
                if len(self.refs) > MAX_REFS:
                    raise IkpyError(f"the JSON schema has more than {MAX_REFS} different $ref")
            out[key] = value
        self._properties(out)
        return out

    def _properties(self, schema: dict) -> None:
        """Leave out the numbers of properties, where some are optional, and properties by patterns.

        Without these other properties may not be forbidden either.
        """
        names, required = schema.get("properties"), schema.get("required", [])
        optional = (
            isinstance(names, dict) and isinstance(required, list) and not names.keys() <= set(map(str, required))
        )
        for key in ("minProperties", "maxProperties"):
            if optional and not self.numbers and key in schema:
                self._leave_out(key)
                del schema[key]
        found = schema.get("patternProperties")
        if not isinstance(found, dict) or not found:
            return
        if any(_LOOKS.search(name) for name in found) or (not self.patterns and len(found) > 1):
            self._leave_out("patternProperties")
            del schema["patternProperties"]
            schema.pop("additionalProperties", None)

    def _leave_out(self, name: str) -> None:
        if name not in self.left_out:
            self.left_out.append(name)
