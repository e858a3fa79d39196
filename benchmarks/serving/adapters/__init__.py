"""One file per server that is compared; each says how to install, start and address it."""

from adapters.base import Adapter
from adapters.bentoml import BENTOML, BENTOML_BATCHING
from adapters.fairlead import FAIRLEAD, FAIRLEAD_BARE, FAIRLEAD_TWO
from adapters.kserve import KSERVE
from adapters.litserve import LITSERVE, LITSERVE_BATCHING
from adapters.mlserver import MLSERVER, MLSERVER_BATCHING
from adapters.pytriton import PYTRITON
from adapters.ray_serve import RAY_SERVE
from adapters.triton import TRITON, TRITON_BATCHING

__all__ = ["ADAPTERS", "Adapter"]

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        FAIRLEAD, FAIRLEAD_TWO, FAIRLEAD_BARE, TRITON, TRITON_BATCHING, PYTRITON, MLSERVER,
        MLSERVER_BATCHING, KSERVE, LITSERVE, LITSERVE_BATCHING, BENTOML, BENTOML_BATCHING,
        RAY_SERVE,
    )
}  # fmt: skip
