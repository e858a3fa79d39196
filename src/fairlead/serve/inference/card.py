"""What serving says about itself."""

from __future__ import annotations

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="model-serving-patterns",
    name="inference",
    concern="serve",
    title="Model serving",
    does="Serve a bundle over the Open Inference Protocol with batching, metrics and a log of "
    "every prediction, or score a file in batches",
    verb="serve",
    command="fairlead serve start",
    takes="Bundle",
    gives="Endpoint",
    symptoms=(
        "turn a model into an API",
        "requests are answered one by one",
        "predictions are slow under load",
        "the server falls over under load",
        "requests are lost when the server restarts",
        "score a whole file or table",
        "predictions leave no trace",
    ),
    extra="serve",
    methods=("adaptive-batching", "request-at-a-time"),
)
