"""The settings of serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from fairlead.backends.prediction_rules import LogRules
from fairlead.core.values import Config

__all__ = ["ServingConfig"]


class ServingConfig(Config):
    """Where to listen, what to protect, and what to remember."""

    name: str | None = None
    """Name of the service and of the model in the protocol; None takes the bundle's name."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on."""
    http_port: int = Field(0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that share the port and the CPUs; with one there is no supervisor."""
    worker_hang_s: float = Field(30.0, ge=1, le=3600)
    """A worker whose event loop stands still for longer is replaced, in seconds."""
    security: Path | None = None
    """TOML file with tokens, certificates, rights, limits and audit; None keeps the defaults."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Port to listen on for gRPC; 0 takes a free one, None serves no gRPC."""
    candidate_weight: float = Field(0.1, ge=0, le=1)
    """Share of the requests that the candidate gets at the start, when there is one."""
    version_policy: str = Field("all", pattern=r"^(all|latest:[1-9]\d{0,5})$")
    """Versions of a model that are loaded: `all`, or `latest:N`."""
    memory_limit_mb: int | None = Field(None, ge=16)
    """Memory that a server process may hold; models that were not used for longest are unloaded
    above it, and loaded again when somebody asks for them. None is no limit."""
    reload_every_s: float | None = Field(None, ge=0.05, le=3600)
    """How often the folders of the bundles are looked at for new content, in seconds; None only
    looks when a load is asked for."""
    batching: Literal["adaptive-batching", "request-at-a-time"] = "adaptive-batching"
    """Whether requests that arrive together run together."""
    max_batch_size: int | None = Field(None, ge=1, le=65536)
    """Most rows that run at once; None takes the bundle's tuned value."""
    max_pending_requests: int = Field(1024, ge=1)
    """Requests per arm that may wait or run; further ones are refused with 503."""
    max_queue_delay_ms: float = Field(2000.0, gt=0, le=3_600_000)
    """Requests that would wait longer than this for the model are refused at once with 503."""
    refusal_pause_ms: float = Field(1000.0, ge=0, le=60_000)
    """How long refusals for want of room are held back once there are more than a hundred per
    second: clients that wait for theirs send nothing meanwhile. 0 refuses all at once."""
    busy_poll_us: int = Field(100, ge=0, le=10_000)
    """How long the event loop looks for the next request of a lone client that asks again and again
    without a pause, instead of sleeping, in microseconds. 0 always sleeps."""
    latency_budget_ms: float | None = Field(None, gt=0, le=3_600_000)
    """Batches stay so small that a request ends within this time; None lets them grow."""
    padding: Mapping[str, float] = Field(default_factory=dict)
    """Input → what pads its sequences; lets sequences of different lengths run together."""
    max_request_rows: int = Field(100_000, ge=1)
    """Most rows of one request; more are refused with 400."""
    max_body_bytes: int = Field(64 << 20, ge=1024)
    """Largest request body, after decompression; larger ones are refused with 413."""
    max_connections: int = Field(4096, ge=1)
    """Clients that may be connected at the same time; further ones are refused with 503."""
    max_buffered_bytes: int = Field(1 << 30, ge=1024)
    """Memory for bodies that arrive or are being answered; beyond it requests get 503."""
    header_timeout_s: float = Field(15.0, gt=0, le=3600)
    """Longest time from the first byte of a request to the end of its headers, in seconds."""
    body_timeout_s: float = Field(20.0, gt=0, le=3600)
    """Time that a body may take however slowly it comes, in seconds."""
    min_body_rate: int = Field(1024, ge=1)
    """Slowest body after that time, in bytes per second."""
    keep_alive_s: float = Field(75.0, gt=0, le=86400)
    """How long a connection may idle, in seconds."""
    write_timeout_s: float = Field(30.0, gt=0, le=3600)
    """How long a client may leave an answer unread, in seconds."""
    request_timeout_s: float = Field(30.0, gt=0, le=3600)
    """Longest time a request may take before it is answered with 504, in seconds."""
    drain_timeout_s: float = Field(30.0, gt=0, le=3600)
    """Longest time that requests in flight get to finish when the server stops, in seconds."""
    inline_run_ms: float = Field(0.5, ge=0, le=10)
    """Models that are expected to run shorter than this run in the event loop's own thread."""
    response_cache_mb: float = Field(0.0, ge=0, le=1 << 20)
    """Memory for answers that are given again when the same inputs come, divided between the
    workers; 0 asks the model every time."""
    log_predictions: bool = True
    """Whether every prediction is written to the workspace."""
    log_mode: Literal["fast", "durable"] = "fast"
    """`fast` answers at once, and a kill -9 loses what was logged in the last `log_flush_s`;
    `durable` answers when the disk holds the prediction, together with others that wait for it."""
    log_rules: LogRules | Path | None = None
    """What share of the requests the log keeps and which columns it hides: a TOML or JSON file,
    or its content."""
    log_flush_s: float = Field(0.2, gt=0, le=3600)
    """Longest time a prediction waits in memory before it is written, in seconds."""
    log_flush_rows: int = Field(2_000, ge=1)
    """Predictions that are written without waiting for the time to be up."""
    log_buffer_bytes: int = Field(16 << 20, ge=1 << 16)
    """Memory for predictions that wait to be written; further ones are dropped and counted."""
    log_segment_s: float = Field(300.0, gt=0, le=86_400)
    """Longest time until written predictions become a Parquet segment, in seconds."""
    log_segment_bytes: int = Field(16 << 20, ge=1 << 16)
    """Bytes of written predictions in one Parquet segment; sixteen are made without waiting."""
    log_spool_bytes: int = Field(4 << 30, ge=1 << 20)
    """Disk for predictions that wait to become segments; further ones are dropped and counted."""
    log_keep_days: float | None = Field(30.0, gt=0)
    """Days after which a Parquet segment of the log is removed; None keeps them for ever."""
    log_keep_bytes: int | None = Field(10 << 30, ge=1 << 20)
    """Disk for the Parquet segments of a service; above it the oldest are removed. None is no
    limit."""
    metrics: bool = True
    """Whether requests are measured for Prometheus at `/metrics`."""
