"""The OpenAPI description of a service, from its models' signatures, and a page of it."""

from __future__ import annotations

import html
import json
from typing import Any

from fairlead.backends.openinference import DATATYPES, datatype_of
from fairlead.core.bundle import Bundle
from fairlead.core.version import __version__

__all__ = ["api_document", "api_page"]

Document = dict[str, Any]

_JSON = "application/json"
_TENSOR_VALUES: Document = {"type": ["number", "string", "boolean", "null", "array"]}
_EVENT: Document = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_NUMBER_OR_TEXT: Document = {"type": ["number", "integer", "string", "boolean", "null"]}
_REFUSALS = {
    "400": "The request does not fit the protocol, or the model.",
    "401": "Credentials are missing or do not hold.",
    "403": "The caller may not do this.",
    "404": "There is no such endpoint, model or version.",
    "405": "The endpoint does not take this method.",
    "408": "The request came too slowly.",
    "409": "It is excluded by what is there.",
    "413": "The body is too large.",
    "415": "The body is compressed in an unknown way.",
    "422": "The model failed on these values, or a bundle is damaged.",
    "429": "The caller asks more often than it may; `Retry-After` says when to come again.",
    "503": "No room, or not ready; `Retry-After` says when to come again.",
    "504": "It took longer than the request may take.",
}


def api_document(bundles: dict[str, Bundle], default: str) -> Document:
    """Return the description.

    Args:
        bundles: Model → the bundle that answers for it.
        default: The model that `/predict` and `/invocations` ask.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": default,
            "version": __version__,
            "description": "Open Inference Protocol (V2), plain rows, and MLflow's scoring. "
            "Bodies may be compressed with gzip or deflate. `x-request-timeout-ms` says how long "
            "the client waits: a request whose time is up is never run.",
        },
        "paths": {
            **_health_paths(),
            **_model_paths(sorted(bundles)),
            "/v2/models/stats": {
                "get": _operation(
                    "Counts and times of all models.",
                    "statistics",
                    _ref("Statistics"),
                    refusals=("404",),
                )
            },
            **_people_paths(bundles[default]),
            **_repository_paths(),
            **_control_paths(),
        },
        "components": {
            "schemas": {
                **_schemas(bundles),
                **_extension_schemas(),
                **_row_schemas(bundles[default]),
            },
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def api_page(document: Document) -> str:
    """Return a page for people that needs nothing from elsewhere."""
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            words = (method.upper(), path, operation["summary"])
            rows.append("<tr>" + "".join(f"<td>{html.escape(w)}</td>" for w in words) + "</tr>")
    title = html.escape(document["info"]["title"])
    schemas = html.escape(json.dumps(document["components"]["schemas"], indent=2))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;"
        "vertical-align:top}td:nth-child(-n+2){font-family:monospace}</style>"
        f"<h1>{title}</h1><p>{html.escape(document['info']['description'])} "
        'The same for machines: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<table>{''.join(rows)}</table><h2>Schemas</h2><pre>{schemas}</pre></html>"
    )


def _operation(
    summary: str,
    name: str,
    answer: Document,
    *,
    kind: str = _JSON,
    refusals: tuple[str, ...] = (),
    **more: Any,  # noqa: ANN401 (parts of the document)
) -> Document:
    problem = {"content": {_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    answers: Document = {"200": {"description": "Done.", "content": {kind: {"schema": answer}}}}
    for status in ("401", "403", "405", "429", *refusals):
        answers[status] = {"description": _REFUSALS[status], **problem}
    return {
        "summary": summary,
        "operationId": name,
        "responses": dict(sorted(answers.items())),
        "security": [{}, {"key": []}, {"bearer": []}],
        **more,
    }


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(*kinds: tuple[str, Document]) -> Document:
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in kinds}}


def _path_parameter(name: str, examples: list[str] | None = None) -> Document:
    schema: Document = {"type": "string", "minLength": 1}
    if examples:
        schema["examples"] = examples
    return {"name": name, "in": "path", "required": True, "schema": schema}


_TIMEOUT: Document = {
    "name": "x-request-timeout-ms",
    "in": "header",
    "required": False,
    "description": "How long the client waits, in milliseconds; 0 leaves it to the server.",
    "schema": {"type": "number", "minimum": 0},
}
_ASKED = ("400", "404", "408", "413", "415", "422", "503", "504")


def _health_paths() -> Document:
    flag: Document = {"type": "object", "additionalProperties": {"type": "boolean"}}
    text = {"type": "string"}
    ready = _operation("Whether the service takes requests.", "serverReady", flag)
    ready["responses"]["503"] = {
        "description": "Not yet, or no longer.",
        "content": {_JSON: {"schema": flag}},
    }
    ping = _operation("The same as ready, without words.", "ping", text, kind="text/plain")
    ping["responses"]["503"] = {
        "description": "Not yet, or no longer.",
        "content": {"text/plain": {"schema": text}},
    }
    metrics = _operation(
        "Metrics for Prometheus.", "metrics", text, kind="text/plain", refusals=("404",)
    )
    return {
        "/v2": {"get": _operation("What the server is.", "serverMetadata", _ref("Server"))},
        "/v2/health/live": {"get": _operation("Whether it lives.", "serverLive", flag)},
        "/v2/health/ready": {"get": ready},
        "/ping": {"get": ping},
        "/health": {"get": {**ping, "operationId": "health"}},
        "/version": {
            "get": _operation("Version of the server.", "version", text, kind="text/plain")
        },
        "/metrics": {"get": metrics},
    }


def _model_paths(models: list[str]) -> Document:
    paths: Document = {}
    for suffix, tail in (("", ""), ("/versions/{version}", "OfVersion")):
        base = "/v2/models/{model}" + suffix
        named = [_path_parameter("model", models)]
        if suffix:
            named.append(_path_parameter("version"))
        asked: Document = {"parameters": [*named, _TIMEOUT], "requestBody": _infer_body()}
        ready = _operation(
            "Whether the model takes requests.", f"modelReady{tail}", _ref("ModelReady"),
            refusals=("404",), parameters=named,
        )  # fmt: skip
        ready["responses"]["503"] = {
            "description": "It does not.",
            "content": {_JSON: {"schema": _ref("ModelReady")}},
        }
        infer = _operation(
            "Ask the model.", f"infer{tail}", _ref("InferResponse"), refusals=_ASKED, **asked
        )
        infer["responses"]["200"]["content"]["application/octet-stream"] = {
            "schema": {"type": "string", "contentEncoding": "binary"}
        }
        stream = _operation(
            "Ask the model; the answer comes as server-sent events, row by row or piece by piece.",
            f"inferStream{tail}", _EVENT, kind="text/event-stream",
            refusals=_ASKED, **asked,
        )  # fmt: skip
        paths[base] = {
            "get": _operation(
                "Names, datatypes and shapes of the model.", f"modelMetadata{tail}",
                _ref("Model"), refusals=("404", "503"), parameters=named,
            )
        }  # fmt: skip
        paths |= _extension_paths(base, tail, named)
        paths[base + "/ready"] = {"get": ready}
        paths[base + "/infer"] = {"post": infer}
        paths[base + "/infer_stream"] = {"post": stream}
    return paths


def _extension_paths(base: str, tail: str, named: list[Document]) -> Document:
    """Return the paths of Triton's configuration and statistics extensions."""
    config = _operation(
        "How the model is batched, queued and placed.", f"modelConfig{tail}", _ref("ModelConfig"),
        refusals=("404", "503"), parameters=named,
    )  # fmt: skip
    stats = _operation(
        "Counts and times of the model.", f"modelStatistics{tail}", _ref("Statistics"),
        refusals=("404",), parameters=named,
    )  # fmt: skip
    return {base + "/config": {"get": config}, base + "/stats": {"get": stats}}


def _infer_body() -> Document:
    binary = {
        "type": "string",
        "contentEncoding": "binary",
        "description": "A JSON header of as many bytes as the header field "
        "`Inference-Header-Content-Length` says, then the tensors.",
    }
    return _body((_JSON, _ref("InferRequest")), ("application/octet-stream", binary))


def _people_paths(bundle: Bundle) -> Document:
    predict = _operation(
        f"Ask {bundle.name} with rows as objects.", "predict", _ref("PredictResponse"),
        refusals=_ASKED, parameters=[_TIMEOUT],
        requestBody=_body((_JSON, _ref("PredictRequest"))),
    )  # fmt: skip
    invoke = _operation(
        f"Ask {bundle.name} as MLflow's clients do.", "invocations", _ref("InvocationResponse"),
        refusals=_ASKED, parameters=[_TIMEOUT],
        requestBody=_body((_JSON, _ref("Invocation")), ("text/csv", {"type": "string"})),
    )  # fmt: skip
    named = [_path_parameter("model"), _TIMEOUT]
    return {
        "/predict": {"post": predict},
        "/predict/{model}": {
            "post": {**predict, "operationId": "predictModel", "parameters": named}
        },
        "/invocations": {"post": invoke},
        "/invocations/{model}": {
            "post": {**invoke, "operationId": "invocationsModel", "parameters": named}
        },
    }


def _repository_paths() -> Document:
    named = [_path_parameter("model")]
    version: Document = {"type": ["string", "null"]}
    unload = _change(named, version=version)
    load = _change(
        named, bundle={"type": ["string", "array", "null"], "items": {"type": "string"}},
        version=version, default={"type": "boolean"},
    )  # fmt: skip
    refusals = ("400", "404", "409", "413", "422", "503")
    done = {"type": "object"}
    filter_body = {"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}}
    return {
        "/v2/repository/index": {
            "post": _operation(
                "All versions of all models.", "repositoryIndex",
                {"type": "array", "items": _ref("IndexEntry")}, refusals=("400", "413"),
                requestBody={"content": {_JSON: {"schema": filter_body}}},
            )
        },
        "/v2/repository/models/{model}/load": {
            "post": _operation("Load a model.", "load", done, refusals=refusals, **load)
        },
        "/v2/repository/models/{model}/unload": {
            "post": _operation("Unload a model.", "unload", done, refusals=refusals, **unload)
        },
    }  # fmt: skip


def _change(named: list[Document], **parameters: Document) -> Document:
    known = {
        "type": ["object", "null"], "properties": parameters, "additionalProperties": False,
    }  # fmt: skip
    body = {"type": "object", "properties": {"parameters": known}}
    return {"parameters": named, "requestBody": {"content": {_JSON: {"schema": body}}}}


def _control_paths() -> Document:
    bearer: Document = {"security": [{"bearer": []}]}
    free = {"type": "object"}
    numbers = [
        {"name": name, "in": "query", "required": False,
         "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}}
        for name in ("after", "limit")
    ]  # fmt: skip
    text = {"type": "string"}
    return {
        "/fairlead/service": {
            "get": _operation(
                "Where the service answers.", "service", free, refusals=("503",), **bearer
            )
        },
        "/fairlead/status": {
            "get": _operation(
                "Its workers and models, and what they hold.", "status", free,
                refusals=("503",), **bearer,
            )
        },
        "/fairlead/traffic": {
            "put": _operation(
                "Set the shares of the arms.", "setTraffic", _ref("TrafficSplit"),
                refusals=("400", "413", "503"),
                requestBody=_body((_JSON, _ref("TrafficSplit"))), **bearer,
            )
        },
        "/fairlead/outcomes": {
            "get": _operation(
                "What became of the last requests.", "outcomes", free,
                refusals=("400",), parameters=numbers, **bearer,
            )
        },
        "/docs": {"get": _operation("This page.", "docs", text, kind="text/html")},
        "/openapi.json": {"get": _operation("This description.", "openapi", free)},
    }  # fmt: skip


def _object(required: tuple[str, ...], **properties: Document) -> Document:
    return {"type": "object", "required": list(required), "properties": properties}


def _schemas(bundles: dict[str, Bundle]) -> Document:
    text: Document = {"type": "string"}
    shape: Document = {"type": "array", "items": {"type": "integer"}, "maxItems": 16}
    sent_shape = {**shape, "items": {"type": "integer", "minimum": 0}}
    datatype: Document = {"type": "string", "enum": list(DATATYPES)}
    values: Document = {"type": "array", "items": _TENSOR_VALUES}
    free: Document = {"type": ["object", "null"]}
    tensors = {"type": "array", "items": _ref("Tensor")}
    specs = {"type": "array", "items": _ref("TensorMetadata")}
    return {
        "Problem": _object(("error", "hint"), error=text, hint=text),
        "Server": _object(
            ("name", "version", "extensions"), name=text, version=text,
            extensions={"type": "array", "items": text},
        ),
        "TensorMetadata": _object(
            ("name", "datatype", "shape"), name=text, datatype=datatype, shape=shape
        ),
        "Model": _object(
            ("name", "versions", "platform", "inputs", "outputs"), name=text,
            versions={"type": "array", "items": text}, platform=text, inputs=specs, outputs=specs,
        ),
        "ModelReady": _object(
            ("name", "ready"), name={"type": ["string", "null"]}, ready={"type": "boolean"}
        ),
        "InputTensor": {
            **_object(
                ("name", "datatype", "shape"), name={**text, "minLength": 1}, datatype=datatype,
                shape=sent_shape, data=values, parameters=free,
            ),
            "anyOf": [{"required": ["data"]}, {"required": ["parameters"]}],
        },
        "RequestedOutput": _object(("name",), name={**text, "minLength": 1}, parameters=free),
        "InferRequest": {
            **_object(
                ("inputs",), id={"type": ["string", "null"], "maxLength": 256}, parameters=free,
                inputs={"type": "array", "items": _ref("InputTensor"), "minItems": 1},
                outputs={"type": ["array", "null"], "items": _ref("RequestedOutput")},
            ),
            "examples": [_example(bundle) for bundle in bundles.values()],
        },
        "Tensor": _object(
            ("name", "datatype", "shape"), name=text, datatype=datatype, shape=shape, data=values,
            parameters=free,
        ),
        "InferResponse": _object(
            ("id", "model_name", "model_version", "outputs"), id=text, model_name=text,
            model_version=text, outputs=tensors, parameters=free,
        ),
        "IndexEntry": _object(
            ("name", "version", "state", "reason"), name=text, version=text, state=text, reason=text
        ),
        "TrafficSplit": _object(
            ("weights",), shadow={"type": ["string", "null"]},
            weights={"type": "object", "additionalProperties": {"type": "number"}},
        ),
    }  # fmt: skip


def _extension_schemas() -> Document:
    text: Document = {"type": "string"}
    count: Document = {"type": "integer", "minimum": 0}
    free: Document = {"type": "object"}
    several: Document = {"type": "array", "items": free}
    entry = _object(
        ("name", "version", "last_inference", "inference_count", "execution_count",
         "inference_stats", "batch_stats"),
        name=text, version=text, last_inference=count, inference_count=count,
        execution_count=count, inference_stats=free, batch_stats=several,
    )  # fmt: skip
    return {
        "ModelConfig": _object(
            ("name", "platform", "backend", "max_batch_size", "input", "output"),
            name=text, platform=text, backend=text, max_batch_size=count, input=several,
            output=several, version_policy=free, instance_group=several, parameters=free,
        ),
        "Statistics": _object(("model_stats",), model_stats={"type": "array", "items": entry}),
    }  # fmt: skip


def _row_schemas(bundle: Bundle) -> Document:
    row: Document = {"type": "object"}
    rows: Document = {"type": "array", "minItems": 1, "items": {"type": ["object", "array"]}}
    table = _object(
        ("columns", "data"),
        columns={"type": "array", "items": {"type": "string"}},
        data={
            "type": "array", "minItems": 1, "items": {"type": "array", "items": _NUMBER_OR_TEXT},
        },
    )  # fmt: skip
    records: Document = {"type": "array", "minItems": 1, "items": row}
    return {
        "PredictRequest": {
            **_object(
                ("rows",), rows=rows, id={"type": ["string", "null"], "maxLength": 256},
                parameters={"type": ["object", "null"]},
            ),
            "examples": [{"rows": [_example_row(bundle)]}],
        },
        "PredictResponse": _object(
            ("id", "model", "version", "predictions"), id={"type": "string"},
            model={"type": "string"}, version={"type": "string"},
            predictions={"type": "array", "items": row},
        ),
        "Invocation": {
            "oneOf": [
                _object(("dataframe_split",), dataframe_split=table),
                _object(("dataframe_records",), dataframe_records=records),
                _object(("instances",), instances={"type": "array", "minItems": 1}),
                _object(("inputs",), inputs={"type": ["object", "array"]}),
            ]
        },
        "InvocationResponse": _object(
            ("predictions",), predictions={"type": ["array", "object"]}
        ),
    }  # fmt: skip


def _example(bundle: Bundle) -> Document:
    """Return a request of one row of zeros for a model."""
    inputs = []
    for spec in bundle.signature.inputs:
        shape = [1 if size == -1 else size for size in spec.shape]
        count = 1
        for size in shape:
            count *= size
        datatype = datatype_of(spec.dtype)
        value = {"BYTES": "", "BOOL": False}.get(datatype, 0)
        data = [value] * min(count, 4096)
        inputs.append({"name": spec.name, "datatype": datatype, "shape": shape, "data": data})
    return {"inputs": inputs}


def _example_row(bundle: Bundle) -> Document:
    """Return a row of zeros as `/predict` takes it."""
    features = bundle.manifest.feature_columns
    if len(bundle.signature.inputs) == 1 and features:
        return dict.fromkeys(features, 0)
    row: Document = {}
    for item in _example(bundle)["inputs"]:
        row[item["name"]] = item["data"][0] if len(item["data"]) == 1 else item["data"]
    return row
