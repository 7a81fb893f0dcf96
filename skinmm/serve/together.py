"""Requests that wait for a GPU at the same time are predicted as one table.

On a CPU a row of a table costs what a row alone does, and each would wait for all.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from skinmm.predict.single_case import Case, CasePredictor

MOST: Final = 8
"""Rows of a table."""


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

    def __init__(self, service: CasePredictor, most: int) -> None:
        """Takes what answers, and how many cases are one table at most."""
        self._service, self._most = service, most
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
        """What is said of a case; in a thread of the desk's; its only one, if tables are wanted."""
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
