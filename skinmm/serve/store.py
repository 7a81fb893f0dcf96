"""The case store: what was said of whom, by which model, to whom; on SQLite or PostgreSQL."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skinmm.errors import InputError
from skinmm.serve.tables import AUDIT, CASES, GUARDS, MODELS, careful, prepare

LAST: Final = 2**31 - 1
"""The highest number that a case can have."""
FORMS: Final = "a SQLite file, or postgresql://USER@HOST/DATABASE (password: PGPASSWORD or .pgpass)"

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_SEEN: Final = [column for column in CASES.columns if column.name != "image"]


class StoreError(Exception):
    """The database did not do what it was asked; nothing of it was kept."""


class NewCase(NamedTuple):
    """A case to keep.

    Attributes:
        patient: as the one who asks calls the patient, if at all.
        record: columns as the model read them.
        result: what was answered.
        image: its file, where images are kept.
    """

    patient: str | None
    record: Mapping[str, Any]
    result: Mapping[str, Any]
    image: bytes | None = None


class Store:
    """Cases, verdicts and the audit trail. What a call returns is on the disk."""

    def __init__(self, engine: Engine) -> None:
        """Takes a database that has the tables; `open` is the way in."""
        self._engine = engine

    @classmethod
    def open(cls, wish: str, *, create: bool = True) -> "Store":
        """Opens a store, and makes it where there is none.

        Args:
            wish: a file of SQLite's, or a URL of either database.
            create: else a file that is not there, or no store, is refused.

        Raises:
            InputError: no such file or database, or a package that is not installed.
        """
        url, name = _url(wish), shown(wish)
        if url.get_backend_name() == "sqlite":
            _private_file(Path(url.database or ""), wish, create=create)
        try:
            engine = create_engine(url, hide_parameters=True)  # no patient in an error's text
        except ModuleNotFoundError as error:
            extra = "pip install 'skinmm[postgresql]'"
            raise InputError(f"store={name}: needs {error.name}: {extra}") from error
        except ArgumentError as error:
            raise InputError(f"store={name}: no such kind of store; give {FORMS}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", careful)
        try:
            with engine.begin() as database:
                prepare(database, name, create=create)
        except InputError:
            engine.dispose()
            raise
        except SQLAlchemyError as error:
            engine.dispose()
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise InputError(f"store={name}: cannot be used ({reason})") from error
        return cls(engine)

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def register(self, model: str, card: Mapping[str, Any]) -> None:
        """Keeps the card of a model that will be asked."""
        kinds: Any = {"sqlite": sqlite, "postgresql": postgresql}  # their inserts know conflicts
        row = (
            kinds[self._engine.dialect.name]
            .insert(MODELS)
            .values(model=model, at=_now(), card=dict(card))
        )
        with self._begin() as database:
            database.execute(row.on_conflict_do_nothing())  # another server may be first

    def models(self) -> dict[str, dict[str, Any]]:
        """The cards of all models, the latest last."""
        with self._begin() as database:
            rows = database.execute(select(MODELS).order_by(MODELS.c.at))
            return {row.model: row.card for row in rows}

    def keep(self, who: str, model: str, cases: Sequence[NewCase]) -> list[int]:
        """Keeps cases, all or none, and returns their numbers."""
        same = {"at": _now(), "who": who, "model": model}
        rows = [{**case._asdict(), **same} for case in cases]
        with self._begin() as database:
            numbers = [
                int(database.execute(insert(CASES).values(row)).inserted_primary_key[0])  # type: ignore[index]
                for row in rows
            ]
            _note(database, who, "predict", numbers)
        return numbers

    def find(
        self,
        who: str,
        *,
        number: int | None = None,
        patient: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Cases in order, without their images: one, those of a patient, or all."""
        wanted = select(*_SEEN).where(CASES.c.number > after).order_by(CASES.c.number).limit(limit)
        wanted = wanted if number is None else wanted.where(CASES.c.number == number)
        wanted = wanted if patient is None else wanted.where(CASES.c.patient == patient)
        with self._begin() as database:
            found = [dict(row) for row in database.execute(wanted).mappings()]
            _note(database, who, "read", [row["number"] for row in found])
        return found

    def image(self, who: str, number: int) -> bytes | None:
        """The image of a case, where it was kept."""
        with self._begin() as database:
            found = database.scalar(select(CASES.c.image).where(CASES.c.number == number))
            _note(database, who, "read image", [number] if found else [])
        return found

    def judge(self, who: str, number: int, verdict: str | None) -> bool:
        """Writes what a clinician found, in place of an earlier verdict; is there such a case?"""
        said = {"verdict": verdict, "verdict_at": _now(), "verdict_who": who}
        with self._begin() as database:
            done = database.execute(update(CASES).where(CASES.c.number == number).values(said))
            if done.rowcount:
                _note(database, who, "verdict", [number], verdict)
        return bool(done.rowcount)

    def forget(self, who: str, *, patient: str | None = None, number: int = 0) -> list[int]:
        """Deletes a patient's cases, or a single one; the trail keeps the numbers returned."""
        meant = CASES.c.number == number if patient is None else CASES.c.patient == patient
        with self._begin() as database:
            numbers = [*database.scalars(delete(CASES).where(meant).returning(CASES.c.number))]
            _note(database, who, "delete", sorted(numbers))
        return sorted(numbers)

    def trail(self, *, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """The audit trail in order."""
        wanted = select(AUDIT).where(AUDIT.c.number > after).order_by(AUDIT.c.number).limit(limit)
        with self._begin() as database:
            return [dict(row) for row in database.execute(wanted).mappings()]

    def table(self, who: str, model: str | None = None) -> pd.DataFrame:
        """The cases of a model, or all, as a prediction file has them; `target` is the verdict."""
        wanted = select(*_SEEN).order_by(CASES.c.number)
        wanted = wanted if model is None else wanted.where(CASES.c.model == model)
        with self._begin() as database:
            rows = [_row(dict(found)) for found in database.execute(wanted).mappings()]
            _note(database, who, "export", [], f"{len(rows)} cases")
        return pd.DataFrame(rows)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        """A transaction: all of it is kept, or nothing."""
        try:
            with self._engine.begin() as database:
                yield database
        except SQLAlchemyError as error:
            raise StoreError(f"the case store: {type(error).__name__}") from error


def shown(wish: str) -> str:
    """A store's name as it may be printed: without a password."""
    return _url(wish).render_as_string(hide_password=True) if "://" in wish else wish


def _url(wish: str) -> URL:
    if "://" not in wish:
        return URL.create("sqlite", database=str(Path(wish).absolute()))
    try:
        url = make_url(wish)
    except (ArgumentError, ValueError) as error:  # what was given may hold a password
        kind = wish.partition("://")[0]
        raise InputError(f"store={kind}://: no such kind of store; give {FORMS}") from error
    if url.get_backend_name() not in GUARDS:
        raise InputError(f"store={url.drivername}: no such kind of store; give {FORMS}")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _private_file(path: Path, wish: str, *, create: bool) -> None:
    """Makes the file where it is missing, for nobody else to read."""
    if not create and not path.is_file():
        raise InputError(f"store={wish}: no such file")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise InputError(f"store={wish}: cannot be written ({error.strerror})") from error


def _note(
    database: Connection, who: str, action: str, cases: list[int], detail: str | None = None
) -> None:
    row = {"at": _now(), "who": who, "action": action, "cases": cases, "detail": detail}
    database.execute(insert(AUDIT).values(row))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _row(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as a row of a prediction file."""
    result = case["result"]
    lists = {name: "|".join(result[name]) for name in ("prediction_set", "missing")}
    said = {name: result[name] for name in ("malignancy", "decision", "threshold", "ood")}
    row = {
        "image_id": case["number"],
        "patient_id": case["patient"] or f"case {case['number']}",
        "target": case["verdict"],
        **{f"p_{name}": chance for name, chance in result["probabilities"].items()},
        **said,
        **{name: result[name] for name in ("called",) if name in result},
        **lists,
        **case["record"],
        **{name: case[name] for name in ("at", "who", "model", "verdict_at", "verdict_who")},
    }
    return {name: cell if name == "target" else _inert(cell) for name, cell in row.items()}


def _inert(cell: Any) -> Any:
    """A cell of which no spreadsheet makes a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
