"""Outbox of a case store: state of predicted images, and results to send.

A result is written together with its case, in one transaction, and sent afterwards. A process that
is killed in between sends the same bytes, with the same UIDs, once more, which archives accept
without storing them twice.
"""

import base64
import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql
from sqlalchemy import Column, Connection, Integer, String

from skinmm.errors import InputError
from skinmm.serve.store import NewCase, Store

READY, SENT, PARKED, IGNORED = "ready", "sent", "parked", "ignored"
_TABLES: Final = sql.MetaData()
_OUTBOX: Final = sql.Table(
    "outbox",
    _TABLES,
    Column("image", String, primary_key=True),  # SOP Instance UID
    Column("study", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("number", Integer),  # of the case
    Column("objects", sql.JSON, nullable=False),  # results that are not sent yet, in Base64
    Column("reason", String, nullable=False),  # why the image is parked, or postponed if ready
)
_TAKEN: Final = "another process sends the results of this store; wait until it ends"
_IS_UNREAD: Final = (_OUTBOX.c.state == READY) & _OUTBOX.c.number.is_(None)


class Outbox:
    """State of every image, in the database of a case store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.begin() as database:
            _TABLES.create_all(database)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Raise InputError if another process sends the results of this store."""
        engine = self._store.engine
        with ExitStack() as stack:
            if engine.dialect.name == "sqlite":
                path = Path(f"{engine.url.database}.lock")
                path.touch(mode=0o600)
                file = stack.enter_context(path.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise InputError(_TAKEN) from error
                stack.callback(fcntl.flock, file, fcntl.LOCK_UN)  # a forked child has it open
            else:
                connection = stack.enter_context(engine.connect())
                connection.detach()  # the lock ends with the connection, not with its use
                if not connection.scalar(sql.text("SELECT pg_try_advisory_lock(7546661)")):
                    raise InputError(_TAKEN)
                connection.commit()
            yield

    def list_images(self) -> dict[str, bool]:
        """Return whether each image still needs a prediction, because it could not be read."""
        query = sql.select(_OUTBOX.c.image, _IS_UNREAD)
        with self._store.begin() as database:
            return {image: bool(is_unread) for image, is_unread in database.execute(query)}

    def add(
        self, user: str, model: str, case: NewCase, image: tuple[str, str], objects: Sequence[bytes]
    ) -> None:
        """Store a case and the results to send, in one transaction; `image`: its UID and study."""
        texts = [base64.b64encode(data).decode() for data in objects]

        def write(database: Connection, numbers: list[int]) -> None:
            _insert(database, image, READY, number=numbers[0], objects=texts)

        self._store.add(user, model, [case], write)

    def add_without_result(self, image: tuple[str, str], state: str, reason: str) -> None:
        """Store an image without a result, with the reason."""
        with self._store.begin() as database:
            _insert(database, image, state, reason=reason)

    def list_ready(self, *, postponed: bool = False) -> list[str]:
        """Return the images with results to send, or with postponed results, oldest case first."""
        query = sql.select(_OUTBOX.c.image).where(_OUTBOX.c.state == READY, ~_IS_UNREAD)
        query = query.where((_OUTBOX.c.reason != "") if postponed else (_OUTBOX.c.reason == ""))
        with self._store.begin() as database:
            return [*database.scalars(query.order_by(_OUTBOX.c.number))]

    def read_objects(self, image: str) -> list[bytes]:
        """Return the results of an image to send."""
        query = sql.select(_OUTBOX.c.objects).where(_OUTBOX.c.image == image)
        with self._store.begin() as database:
            return [base64.b64decode(text) for text in database.scalar(query) or []]

    def set_state(self, image: str, state: str, reason: str = "") -> None:
        """Mark a ready image as sent, which deletes its results, or as parked."""
        values: dict[str, Any] = {"state": state, "reason": reason}
        if state == SENT:
            values["objects"] = []
        statement = sql.update(_OUTBOX).where(_OUTBOX.c.image == image, _OUTBOX.c.state == READY)
        with self._store.begin() as database:
            database.execute(statement.values(values))

    def postpone(self, image: str, study: str, reason: str) -> None:
        """Store why an image, or its result, waits until the others are done."""
        is_ready = (_OUTBOX.c.image == image) & (_OUTBOX.c.state == READY)
        with self._store.begin() as database:
            update = sql.update(_OUTBOX).where(is_ready).values(reason=reason)
            if not database.execute(update).rowcount:
                _insert(database, (image, study), READY, reason=reason)

    def restart_parked(self) -> None:
        """Make parked results ready again, and delete parked images without a result."""
        is_parked = _OUTBOX.c.state == PARKED
        has_result = _OUTBOX.c.number.is_not(None)
        with self._store.begin() as database:
            database.execute(sql.delete(_OUTBOX).where(is_parked, ~has_result))
            values = {"state": READY, "reason": ""}
            database.execute(sql.update(_OUTBOX).where(is_parked).values(values))

    def dismiss(self, images: Sequence[str]) -> None:
        """Give parked images up; raise InputError if an image is not parked."""
        with self._store.begin() as database:
            for image in images:
                is_parked = (_OUTBOX.c.image == image) & (_OUTBOX.c.state == PARKED)
                update = sql.update(_OUTBOX).where(is_parked).values(state=IGNORED)
                if not database.execute(update).rowcount:
                    raise InputError(f"dismiss={image}: no parked image has this SOP Instance UID")

    def list_studies(self) -> dict[int, tuple[str, str]]:
        """Return Study and SOP Instance UID of each case's image, by case number."""
        columns = (_OUTBOX.c.number, _OUTBOX.c.study, _OUTBOX.c.image)
        query = sql.select(*columns).where(_OUTBOX.c.number.is_not(None))
        with self._store.begin() as database:
            return {number: (study, image) for number, study, image in database.execute(query)}

    def count(self) -> dict[str, int]:
        """Return the number of images in each state."""
        query = sql.select(_OUTBOX.c.state, sql.func.count()).group_by(_OUTBOX.c.state)
        with self._store.begin() as database:
            rows = {state: int(count) for state, count in database.execute(query)}
        return {state: rows.get(state, 0) for state in (SENT, READY, PARKED)}


def _insert(database: Connection, image: tuple[str, str], state: str, **values: Any) -> None:
    database.execute(sql.delete(_OUTBOX).where(_OUTBOX.c.image == image[0], _IS_UNREAD))
    row = {"image": image[0], "study": image[1], "state": state, "objects": [], "reason": ""}
    database.execute(sql.insert(_OUTBOX).values(row | values))
