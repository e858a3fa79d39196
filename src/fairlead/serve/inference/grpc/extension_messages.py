"""Messages of Triton's extensions of the protocol: configuration and statistics of models.

The fields are those that this server fills; their numbers are the extensions' own.
"""

from __future__ import annotations

__all__ = ["EXTENSION_ENUMS", "EXTENSION_MESSAGES", "EXTENSION_ONEOFS"]

_NAME_VERSION = ("string name = 1", "string version = 2")
_DURATION = "StatisticDuration"

EXTENSION_ENUMS: dict[str, tuple[str, ...]] = {
    "DataType": tuple(
        f"TYPE_{name}"
        for name in (
            "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32",
            "INT64", "FP16", "FP32", "FP64", "STRING", "BF16",
        )
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
"""Name → its values, numbered from 0; those of a message stand under the message's name."""

EXTENSION_ONEOFS = {"ModelConfig": "scheduling_choice", "ModelVersionPolicy": "policy_choice"}
"""Message → what the alternatives among its fields are called."""

EXTENSION_MESSAGES: dict[str, tuple[str, ...]] = {
    "ModelStatisticsRequest": _NAME_VERSION,
    "ModelStatisticsResponse": ("repeated ModelStatistics model_stats = 1",),
    "StatisticDuration": ("uint64 count = 1", "uint64 ns = 2"),
    "InferStatistics": (
        f"{_DURATION} success = 1",
        f"{_DURATION} fail = 2",
        f"{_DURATION} queue = 3",
        f"{_DURATION} compute_input = 4",
        f"{_DURATION} compute_infer = 5",
        f"{_DURATION} compute_output = 6",
        f"{_DURATION} cache_hit = 7",
        f"{_DURATION} cache_miss = 8",
    ),
    "InferBatchStatistics": (
        "uint64 batch_size = 1",
        f"{_DURATION} compute_input = 2",
        f"{_DURATION} compute_infer = 3",
        f"{_DURATION} compute_output = 4",
    ),
    "ModelStatistics": (
        *_NAME_VERSION,
        "uint64 last_inference = 3",
        "uint64 inference_count = 4",
        "uint64 execution_count = 5",
        "InferStatistics inference_stats = 6",
        "repeated InferBatchStatistics batch_stats = 7",
    ),
    "ModelConfigRequest": _NAME_VERSION,
    "ModelConfigResponse": ("ModelConfig config = 1",),
    "ModelParameter": ("string string_value = 1",),
    "ModelInput": (
        "string name = 1",
        "DataType data_type = 2",
        "repeated int64 dims = 4",
    ),
    "ModelOutput": (
        "string name = 1",
        "DataType data_type = 2",
        "repeated int64 dims = 3",
    ),
    "ModelVersionPolicy": (
        "oneof ModelVersionPolicy.Latest latest = 1",
        "oneof ModelVersionPolicy.All all = 2",
    ),
    "ModelVersionPolicy.Latest": ("uint32 num_versions = 1",),
    "ModelVersionPolicy.All": (),
    "ModelQueuePolicy": (
        "uint64 default_timeout_microseconds = 2",
        "bool allow_timeout_override = 3",
        "uint32 max_queue_size = 4",
    ),
    "ModelDynamicBatching": (
        "uint64 max_queue_delay_microseconds = 2",
        "ModelQueuePolicy default_queue_policy = 6",
    ),
    "ModelInstanceGroup": (
        "string name = 1",
        "int32 count = 2",
        "ModelInstanceGroup.Kind kind = 4",
    ),
    "ModelTransactionPolicy": ("bool decoupled = 1",),
    "ModelResponseCache": ("bool enable = 1",),
    "ModelConfig": (
        "string name = 1",
        "string platform = 2",
        "ModelVersionPolicy version_policy = 3",
        "int32 max_batch_size = 4",
        "repeated ModelInput input = 5",
        "repeated ModelOutput output = 6",
        "repeated ModelInstanceGroup instance_group = 7",
        "string default_model_filename = 8",
        "oneof ModelDynamicBatching dynamic_batching = 11",
        "map<ModelParameter> parameters = 14",
        "string backend = 17",
        "ModelTransactionPolicy model_transaction_policy = 19",
        "ModelResponseCache response_cache = 24",
    ),
}
"""Message → its fields."""
