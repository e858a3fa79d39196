"""The Open Inference Protocol over gRPC, on the same event loop and dataplane as HTTP."""

from fairlead.serve.inference.grpc.limits import GrpcLimits
from fairlead.serve.inference.grpc.server import GrpcServer

__all__ = ["GrpcLimits", "GrpcServer"]
