"""Case store on SQLite or PostgreSQL: predicted cases, confirmed diagnoses and an audit trail."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
import sqlalchemy as sql
from sqlalchemy import Column, Connection, Engine, Integer, String, event, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skinmm.errors import InputError
from skinmm.serve.responses import ProblemError

MAX_NUMBER: Final = 2**31 - 1  # of a case
_FORMATS: Final = "a SQLite file or postgresql://USER@HOST/DATABASE (password: PGPASSWORD, .pgpass)"
_TABLES: Final = sql.MetaData()
_MODELS: Final = sql.Table(
    "models",
    _TABLES,
    Column("model", String, primary_key=True),  # SHA-256 digests of the checkpoints
    Column("at", String, nullable=False),
    Column("card", sql.JSON, nullable=False),
)
_CASES: Final = sql.Table(
    "cases",
    _TABLES,
    Column("number", Integer, primary_key=True),
    Column("at", String, nullable=False),  # UTC, ISO 8601
    Column("who", String, nullable=False),
    Column("patient", String, index=True),
    Column("model", String, nullable=False),
    Column("record", sql.JSON, nullable=False),
    Column("result", sql.JSON, nullable=False),
    Column("image", sql.LargeBinary),
    *(Column(name, String) for name in ("verdict", "verdict_at", "verdict_who")),
    sqlite_autoincrement=True,  # the number of a deleted case is never used again
)
_AUDIT: Final = sql.Table(
    "audit",
    _TABLES,
    Column("number", Integer, primary_key=True),
    *(Column(name, String, nullable=False) for name in ("at", "who", "action")),
    Column("cases", sql.JSON, nullable=False),  # numbers only: the trail must not name patients
    Column("detail", String),
    sqlite_autoincrement=True,
)
_SELECT_CASES: Final = select(
    *(column for column in _CASES.columns if column.name != "image")
).order_by(_CASES.c.number)
_APPEND_ONLY: Final = "the audit trail is append-only"
_CHANGES: Final = {  # SQLite's REPLACE deletes without firing the trigger of a deletion
    "update": "UPDATE ON audit",
    "delete": "DELETE ON audit",
    "replace": "INSERT ON audit WHEN NEW.number > 0 "
    "AND EXISTS (SELECT 1 FROM audit WHERE number = NEW.number)",
}
_TRIGGERS: Final = {
    "sqlite": {
        f"audit_no_{verb}": [
            f"CREATE TRIGGER audit_no_{verb} BEFORE {change} "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
        ]
        for verb, change in _CHANGES.items()
    },
    "postgresql": {
        "audit_append_only": [
            "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$",
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
        ]
    },
}
_LIST_TRIGGERS: Final = {
    "sqlite": "SELECT lower(name) FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE tgrelid = 'audit'::regclass",
}
_LOCK: Final = {  # Python's SQLite driver does not begin a transaction before it creates a table
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(7546660)",
}


class StoreError(ProblemError):
    """Failure of the database; the transaction was rolled back."""

    def __init__(self, reason: str) -> None:
        message = f"the case store does not answer ({reason}): try again"
        super().__init__(503, message)


class NewCase(NamedTuple):
    """Case to store: patient, parsed record, result and image file."""

    patient: str | None
    record: Mapping[str, Any]
    result: Mapping[str, Any]
    image: bytes | None = None


class Store:
    """Store of cases, diagnoses and audit trail, see `open`; calls return after a write to disk."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, location: str, *, create: bool = True) -> "Store":
        """Open a SQLite file or a database URL; `create` adds the file and missing tables."""
        url, name = _to_url(location), hide_password(location)
        if url.get_backend_name() == "sqlite":
            _require_private_file(Path(url.database or ""), location, create=create)
        try:
            engine = sql.create_engine(url, hide_parameters=True)  # no patients in error messages
        except ModuleNotFoundError as error:
            extra = "pip install 'skinmm[postgresql]'"
            raise InputError(f"store={name}: needs {error.name}: {extra}") from error
        except ArgumentError as error:
            raise InputError(f"store={name}: unsupported database; use {_FORMATS}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
        try:
            with engine.begin() as database:
                _create_tables(database, name, create=create)
        except (InputError, SQLAlchemyError) as error:
            engine.dispose()
            if isinstance(error, InputError):
                raise
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise InputError(f"store={name}: cannot be used ({reason})") from error
        return cls(engine)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def register(self, model: str, card: Mapping[str, Any]) -> None:
        """Store the card of a model unless it is already stored."""
        dialects: Any = {"sqlite": sqlite, "postgresql": postgresql}  # for ON CONFLICT
        row = {"model": model, "at": _now(), "card": dict(card)}
        statement = dialects[self.engine.dialect.name].insert(_MODELS).values(row)
        with self.begin() as database:
            database.execute(statement.on_conflict_do_nothing())

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the cards of all models, newest last."""
        with self.begin() as database:
            rows = database.execute(select(_MODELS).order_by(_MODELS.c.at))
            return {row.model: row.card for row in rows}

    def add(
        self,
        user: str,
        model: str,
        cases: Sequence[NewCase],
        also: Callable[[Connection, list[int]], None] = lambda *_: None,
    ) -> list[int]:
        """Store cases and the writes of `also` in one transaction; return the case numbers."""
        common = {"at": _now(), "who": user, "model": model}
        with self.begin() as database:
            numbers = [
                int(database.execute(insert(_CASES).values(row)).inserted_primary_key[0])  # type: ignore[index]
                for row in ({**case._asdict(), **common} for case in cases)
            ]
            _log(database, user, "predict", numbers)
            also(database, numbers)
        return numbers

    def find(
        self,
        user: str,
        *,
        number: int | None = None,
        patient: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Return one case, the cases of a patient, or all; in order and without images."""
        query = _SELECT_CASES.where(_CASES.c.number > after).limit(limit)
        query = query if number is None else query.where(_CASES.c.number == number)
        query = query if patient is None else query.where(_CASES.c.patient == patient)
        with self.begin() as database:
            cases = [dict(row) for row in database.execute(query).mappings()]
            _log(database, user, "read", [case["number"] for case in cases])
        return cases

    def read_image(self, user: str, number: int) -> bytes | None:
        """Return the image of a case, if it is stored."""
        with self.begin() as database:
            image = database.scalar(select(_CASES.c.image).where(_CASES.c.number == number))
            _log(database, user, "read image", [number] if image else [])
        return image

    def set_verdict(self, user: str, number: int, verdict: str | None) -> None:
        """Store the confirmed diagnosis of a case, replacing an earlier one."""
        values = {"verdict": verdict, "verdict_at": _now(), "verdict_who": user}
        statement = sql.update(_CASES).where(_CASES.c.number == number).values(values)
        with self.begin() as database:
            if database.execute(statement).rowcount:
                _log(database, user, "verdict", [number], verdict)

    def delete(self, user: str, *, patient: str | None = None, number: int = 0) -> list[int]:
        """Delete the cases of a patient, or a single case; return the deleted numbers."""
        rows = _CASES.c.number == number if patient is None else _CASES.c.patient == patient
        statement = sql.delete(_CASES).where(rows).returning(_CASES.c.number)
        with self.begin() as database:
            numbers = sorted(database.scalars(statement))
            _log(database, user, "delete", numbers)
        return numbers

    def read_audit(self, *, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Return the audit trail in order."""
        query = select(_AUDIT).where(_AUDIT.c.number > after).order_by(_AUDIT.c.number)
        with self.begin() as database:
            return [dict(row) for row in database.execute(query.limit(limit)).mappings()]

    def to_table(self, user: str, model: str | None = None) -> pd.DataFrame:
        """Return cases as a prediction file whose `target` is the confirmed diagnosis."""
        query = _SELECT_CASES if model is None else _SELECT_CASES.where(_CASES.c.model == model)
        with self.begin() as database:
            rows = [_to_row(dict(case)) for case in database.execute(query).mappings()]
            _log(database, user, "export", [], f"{len(rows)} cases")
        return pd.DataFrame(rows)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction, which is stored as a whole or rolled back."""
        try:
            with self.engine.begin() as database:
                yield database
        except SQLAlchemyError as error:
            raise StoreError(type(error).__name__) from error


def hide_password(location: str) -> str:
    """Return the location of a store without its password."""
    return _to_url(location).render_as_string() if "://" in location else location


def _to_url(location: str) -> URL:
    if "://" not in location:
        return URL.create("sqlite", database=str(Path(location).absolute()))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:  # the location may contain a password
        scheme = location.partition("://")[0]
        raise InputError(f"store={scheme}://: unsupported database; use {_FORMATS}") from error
    if url.get_backend_name() not in _TRIGGERS:
        raise InputError(f"store={url.drivername}: unsupported database; use {_FORMATS}")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _require_private_file(path: Path, location: str, *, create: bool) -> None:
    """Create a missing file, readable by its owner only."""
    if not create and not path.is_file():
        raise InputError(f"store={location}: no such file")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise InputError(f"store={location}: cannot be written ({error.strerror})") from error


def _create_tables(database: Connection, name: str, *, create: bool) -> None:
    """Create missing tables and triggers in one transaction."""
    dialect = database.dialect.name
    database.exec_driver_sql(_LOCK[dialect])
    if not create and not {*_TABLES.tables} <= {*sql.inspect(database).get_table_names()}:
        raise InputError(f"store={name}: not a case store; give the store= of skinmm serve")
    _TABLES.create_all(database)
    existing = {*database.exec_driver_sql(_LIST_TRIGGERS[dialect]).scalars()}
    for trigger, statements in _TRIGGERS[dialect].items():
        for statement in statements if trigger not in existing else ():
            database.exec_driver_sql(statement)


def _configure_sqlite(connection: Any, _: Any) -> None:
    """Configure writes to survive a loss of power, and deletions to overwrite the data."""
    for setting in ("synchronous=EXTRA", "secure_delete=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {setting}")


def _log(
    database: Connection, user: str, action: str, cases: list[int], detail: str | None = None
) -> None:
    row = {"at": _now(), "who": user, "action": action, "cases": cases, "detail": detail}
    database.execute(insert(_AUDIT).values(row))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _to_row(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case as a row of a prediction file."""
    result = case["result"]
    scalars = ("malignancy", "decision", "threshold", "ood", "called")
    row = {
        "image_id": f"case {case['number']}",
        "patient_id": case["patient"],
        "target": case["verdict"],
        **{f"p_{name}": probability for name, probability in result["probabilities"].items()},
        **{name: result[name] for name in scalars if name in result},
        **{name: "|".join(result[name]) for name in ("prediction_set", "missing")},
        **case["record"],
        **{name: case[name] for name in ("at", "who", "model", "verdict_at", "verdict_who")},
    }
    for name, cell in row.items():  # a spreadsheet must not evaluate a text as a formula
        is_formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        if is_formula and name != "target":
            row[name] = f"'{cell}"
    return row
