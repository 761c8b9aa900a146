"""Stand-in for the hosting server's app: its routes, and what it makes of requests, in short."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

server = Flask(__name__)
model_classes: list[type[Any]] = []


def init_app(
    model_class: type[Any], basic_auth_user: str | None = None, basic_auth_pass: str | None = None
) -> Flask:
    model_classes.append(model_class)
    return server


@server.post("/predict")
def _predict() -> Any:
    raise NotImplementedError("the adapter answers")


@server.post("/setup")
def _setup() -> Any:
    raise NotImplementedError("the adapter answers")


@server.post("/webhook")
def webhook() -> Any:
    return jsonify(status="Unknown event", sent=request.json), 200


@server.get("/health")
@server.get("/")
def health() -> Any:
    return jsonify(status="UP", model_class=model_classes[-1].__name__)


@server.get("/metrics")
def metrics() -> Any:
    return jsonify({})
