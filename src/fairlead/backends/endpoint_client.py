"""A client of a running Fairlead server that may also use its control endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from fairlead.backends.access import OPEN, Access
from fairlead.backends.client import Client
from fairlead.backends.client_calls import InferResult
from fairlead.backends.client_policy import RetryPolicy
from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.errors import EndpointError

__all__ = ["EndpointClient", "InferResult", "OutcomePage", "RequestOutcome"]


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What became of one request, as the server's ring remembers it.

    Attributes:
        seq: Number of the outcome, from 1, without gaps.
        id: Id of the request.
        arm: The arm that ran it.
        version: Version of the bundle behind it.
        status: HTTP status; 200 when it was answered.
        run_ms: Time the model ran, in ms.
        total_ms: Time from arrival to answer, in ms.
        prediction: Predicted label or value; a list for a request of several rows; None when
            it failed.
        at: End of the request, seconds since the epoch.
    """

    seq: int
    id: str
    arm: str
    version: str
    status: int
    run_ms: float
    total_ms: float
    prediction: Any
    at: float


@dataclass(frozen=True, slots=True)
class OutcomePage:
    """Some outcomes in order, and where to go on.

    Attributes:
        outcomes: The outcomes.
        next: What to pass as `after` for the ones that follow.
        missed: Outcomes after `after` that the ring had already forgotten.
    """

    outcomes: tuple[RequestOutcome, ...]
    next: int
    missed: int


class EndpointClient(Client):
    """Talks to one service; safe to use from several threads.

    What it hears is what is: it never repeats a request that the server refused.
    """

    def __init__(
        self,
        url: str,
        service: str,
        admin_token: str | None = None,
        *,
        timeout_s: float = 30.0,
        access: Access = OPEN,
    ) -> None:
        """Remember where the server is; nothing is sent yet.

        Args:
            url: Base URL, for example `http://127.0.0.1:8080`.
            service: Name of the service, which is also the name of the model.
            admin_token: Opens the control endpoints, and the others where they need credentials;
                None shows what `access` holds.
            timeout_s: Longest wait for one answer, in seconds.
            access: Credentials, and the certificates to trust and to show.

        Raises:
            UsageError: It is no URL of a server, or a certificate cannot be read.
        """
        key, token = access.api_key, access.token
        shown = None if token is None else token.get_secret_value()
        super().__init__(
            url,
            service,
            api_key=None if key is None or admin_token else key.get_secret_value(),
            token=admin_token or shown,
            timeout_s=timeout_s,
            retry=RetryPolicy(attempts=1),
            tls=access.tls,
        )

    @classmethod
    def of(
        cls, endpoint: Endpoint, admin_token: str | None = None, *, timeout_s: float = 30.0
    ) -> Self:
        """Return a client of a server on this machine, with what its record says of TLS."""
        access = Access.of_endpoint(endpoint, admin_token)
        return cls(endpoint.url, endpoint.service, timeout_s=timeout_s, access=access)

    @property
    def service(self) -> str:
        """Name of the service."""
        return self.model

    def describe(self) -> Endpoint:
        """Return the endpoint as the server itself sees it; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return Endpoint.model_validate(self._json("GET", "/fairlead/service")["endpoint"])

    def traffic(self) -> TrafficSplit:
        """Return the share of the requests each arm gets; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return TrafficSplit.model_validate(self._json("GET", "/fairlead/service")["traffic"])

    def set_traffic(self, split: TrafficSplit) -> TrafficSplit:
        """Change the share of the requests each arm gets, from the next request on.

        Returns:
            The split that is now in force.

        Raises:
            DataError: The split names an unknown arm, or does not add up to 1.
            EndpointError: The server cannot be reached or refuses.
        """
        answer = self._json("PUT", "/fairlead/traffic", split.model_dump(mode="json"))
        return TrafficSplit.model_validate(answer)

    def outcomes(self, after: int = 0, limit: int = 1000) -> OutcomePage:
        """Return what became of the requests after number `after`; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        answer = self._json("GET", f"/fairlead/outcomes?after={after:d}&limit={limit:d}")
        found = tuple(RequestOutcome(**item) for item in answer["outcomes"])
        return OutcomePage(found, answer["next"], answer["missed"])

    def metrics(self) -> str:
        """Return the server's metrics in Prometheus's text format.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return self._run(self._calls.text("/metrics"))

    def index(self) -> list[dict[str, Any]]:
        """Return every version of every model, with its state and the reason of it.

        Raises:
            EndpointError: The server cannot be reached, or has no repository.
        """
        answer = self._run(self._calls.document("POST", "/v2/repository/index", {}))
        if isinstance(answer, list) and all(isinstance(item, dict) for item in answer):
            return answer
        raise EndpointError(
            f"{self.url} answered the question for its models with {str(answer)[:80]}",
            hint="check that the URL is that of a server with the repository extension",
        )

    def load_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model; `Repository.load` says which parameters there are.

        Raises:
            NotFoundError: There is no such model, version or bundle.
            DataError: It cannot be loaded; what answered before goes on.
            AccessError: The caller may not.
            EndpointError: The server cannot be reached, or failed.
        """
        self._change(name, "load", parameters)

    def unload_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Unload a model, or its one `version`.

        Raises:
            NotFoundError: There is no such model or version.
            AccessError: The caller may not.
            EndpointError: The server cannot be reached, or failed.
        """
        self._change(name, "unload", parameters)

    def status(self) -> dict[str, Any]:
        """Return the workers and models of the service; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return self._json("GET", "/fairlead/status")

    def _change(self, name: str, what: str, parameters: Mapping[str, Any]) -> None:
        path = f"/v2/repository/models/{quote(name, safe='')}/{what}"
        self._json("POST", path, {"parameters": dict(parameters)})

    def _json(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        return self._run(self._calls.json(method, path, document))
