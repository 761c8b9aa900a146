"""Apps of one process share what their routes and templates compile to: most of what an app costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket
from werkzeug.routing import Rule


class MemoryCache(BytecodeCache):
    """Keeps templates in this process. Jinja's digests of their sources are compared by its buckets."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._code:
            bucket.bytecode_from_string(self._code[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key] = bucket.bytecode_to_string()


def share_compiled(patch: pytest.MonkeyPatch) -> None:
    """Has apps take routes and templates from the first app that compiled them."""
    patch.setattr(Flask, "jinja_options", {**Flask.jinja_options, "bytecode_cache": MemoryCache()})
    compile_builder: Callable[..., Any] = Rule._compile_builder
    builders: dict[tuple[str, bool], Any] = {}

    def shared(rule: Rule, append_unknown: bool = True) -> Any:
        """A builder takes converters from the rule that it is bound to; only defaults and hosts are in it."""
        if rule.defaults or rule.host or rule.subdomain:
            return compile_builder(rule, append_unknown)
        key = rule.rule, append_unknown
        if key not in builders:
            builders[key] = compile_builder(rule, append_unknown)
        return builders[key]

    patch.setattr(Rule, "_compile_builder", shared)
