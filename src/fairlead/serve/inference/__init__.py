"""Model serving: a bundle behind the Open Inference Protocol."""

from fairlead.serve.inference.card import CARD
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.model_versions import ModelSource
from fairlead.serve.inference.skill import serve

__all__ = ["CARD", "ModelSource", "ServingConfig", "serve"]
