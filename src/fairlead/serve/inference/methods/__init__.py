"""How requests share the model: the registry of methods."""

from fairlead.serve.inference.methods.adaptive_batching import take_compatible
from fairlead.serve.inference.methods.queue import Take
from fairlead.serve.inference.methods.request_at_a_time import take_one

__all__ = ["METHODS", "Take"]

METHODS: dict[str, Take] = {
    "adaptive-batching": take_compatible,
    "request-at-a-time": take_one,
}
