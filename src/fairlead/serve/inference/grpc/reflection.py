"""gRPC's reflection service: tells tools which services and messages there are."""

from __future__ import annotations

from fairlead.serve.inference.grpc.call import Call
from fairlead.serve.inference.grpc.schema import Message, schema
from fairlead.serve.inference.grpc.status import Code

__all__ = ["REFLECTIONS", "Reflection"]

REFLECTIONS = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


class Reflection:
    """Answers `ServerReflectionInfo` of one version of the reflection service."""

    def __init__(self, service: str) -> None:
        """Speak for a version.

        Args:
            service: Full name of the reflection service.
        """
        package = service.rpartition(".")[0]
        self._schema = schema()
        self._request = self._schema.messages[f"{package}.ServerReflectionRequest"]
        self._response = self._schema.messages[f"{package}.ServerReflectionResponse"]

    async def answer(self, call: Call) -> None:
        """Answer one question after the other."""
        while (raw := await call.next()) is not None:
            request = self._request.FromString(raw)
            response = self._response(valid_host=request.host, original_request=request)
            try:
                self._fill(response, request)
            except KeyError as exc:
                response.error_response.error_code = Code.NOT_FOUND
                response.error_response.error_message = f"there is no {exc}"
            call.send(response.SerializeToString())
            await call.ready()
        call.finish()

    def _fill(self, response: Message, request: Message) -> None:
        pool = self._schema.pool
        which = request.WhichOneof("message_request")
        if which == "list_services":
            for name in sorted(self._schema.services):
                response.list_services_response.service.add(name=name)
        elif which == "file_by_filename":
            self._add_file(response, pool.FindFileByName(request.file_by_filename))
        elif which == "file_containing_symbol":
            symbol = request.file_containing_symbol
            self._add_file(response, pool.FindFileContainingSymbol(symbol))
        elif which == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            response.all_extension_numbers_response.base_type_name = name
            pool.FindMessageTypeByName(name)
        else:
            raise KeyError("such extension")

    def _add_file(self, response: Message, file: Message) -> None:
        response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
