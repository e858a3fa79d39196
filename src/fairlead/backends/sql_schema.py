"""The tables of the state database; one place, so that one number versions them all."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "ALIASES",
    "EVIDENCE",
    "METADATA",
    "MODELS",
    "RUNS",
    "RUN_METRICS",
    "RUN_PARAMS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "VERSIONS",
]

SCHEMA_VERSION = 1
"""Raised when a database written today could not be used by yesterday's code."""

METADATA = MetaData()

_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up only columns of type INTEGER."""

SCHEMA = Table("fairlead_schema", METADATA, Column("version", Integer, primary_key=True))

EVIDENCE = Table(
    "evidence",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("metric", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("skill", String, nullable=False),
    Column("value", Float(53), nullable=False),
    Column("unit", String, nullable=False),
    Column("method", Text, nullable=False),
    Column("sample_size", BigInteger, nullable=False),
    Column("ci_low", Float(53)),
    Column("ci_high", Float(53)),
    Column("labels", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("measured_at", String(40), nullable=False),
    Index("evidence_metric", "metric", "measured_at"),
    Index("evidence_subject", "subject", "measured_at"),
    Index("evidence_skill", "skill", "measured_at"),
    Index("evidence_time", "measured_at"),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("experiment", String, nullable=False),
    Column("name", String, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_at", String(40), nullable=False),
    Column("document", Text, nullable=False),
    Index("runs_experiment", "experiment", "started_at"),
    Index("runs_status", "status"),
)

RUN_PARAMS = Table(
    "run_params",
    METADATA,
    Column("run_id", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", Text, nullable=False),
)

RUN_METRICS = Table(
    "run_metrics",
    METADATA,
    Column("run_id", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("value", Float(53)),
    Column("step", BigInteger),
    Column("at", String(40), nullable=False),
    Index("run_metrics_name", "run_id", "name"),
)

MODELS = Table(
    "registered_models",
    METADATA,
    Column("name", String, primary_key=True),
    Column("created_at", String(40), nullable=False),
)

VERSIONS = Table(
    "model_versions",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("name", String, ForeignKey("registered_models.name"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("bundle_digest", String(80), nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("name", "version"),
    Index("model_versions_digest", "bundle_digest"),
)

ALIASES = Table(
    "model_aliases",
    METADATA,
    Column("name", String, ForeignKey("registered_models.name"), primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("set_at", String(40), nullable=False),
)
