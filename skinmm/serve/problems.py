"""Errors of the API, as RFC 9457 problem details."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        detail: what was given, what is allowed, what to do.
        headers: of the answer.
    """

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Takes what the answer will say."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    @classmethod
    def unusable(cls, detail: str) -> "ProblemError":
        """What was sent cannot be used."""
        return cls(HTTPStatus.UNPROCESSABLE_ENTITY, detail)

    def response(self) -> JSONResponse:
        """The answer."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": int(self.status),
            "detail": self.detail,
        }
        return JSONResponse(content, int(self.status), self.headers, MEDIA_TYPE)
