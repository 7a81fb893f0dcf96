"""Requests that wait at the same time are predicted as one table: half the work for each."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from skinmm.serve.service import Case, Service

MOST: Final = 8
"""Rows of a table. Beside a network's 26 ms a table costs 30 ms of computing, be it of one row or
of several (benchmarks/results/serving.md)."""


class Ticket:
    """A case that waits.

    Attributes:
        case: what is asked.
        row: what is said; None before.
    """

    def __init__(self, case: Case) -> None:
        """Takes the case."""
        self.case = case
        self.row: dict[str, Any] | None = None


class Together:
    """The cases that wait for the desk's thread, in order."""

    def __init__(self, service: Service) -> None:
        """Takes what answers; models that compare a patient's lesions get each case alone."""
        self._service = service
        self._most = 1 if service.predictor.others else MOST
        self._waiting: deque[Ticket] = deque()

    @contextmanager
    def waiting(self, case: Case) -> Iterator[Ticket]:
        """A place among those that wait, until the request has its answer or is given up."""
        ticket = Ticket(case)
        self._waiting.append(ticket)
        try:
            yield ticket
        finally:
            with suppress(ValueError):  # it was predicted
                self._waiting.remove(ticket)

    def row(self, ticket: Ticket) -> dict[str, Any]:
        """What is said of a case; in the desk's thread, which runs one job at a time."""
        row = ticket.row
        if row is None:
            others = [each for each in self._waiting.copy() if each is not ticket]
            batch = [ticket, *others[: self._most - 1]]
            try:
                rows = self._service.predict_cases([each.case for each in batch])
            except Exception:
                if len(batch) == 1:
                    raise
                batch = [ticket]  # whichever case it was, only its own request fails
                rows = self._service.predict_cases([ticket.case])
            for each, said in zip(batch, rows, strict=True):
                each.row = said
                with suppress(ValueError):  # given up meanwhile
                    self._waiting.remove(each)
            row = rows[0]
        return row
