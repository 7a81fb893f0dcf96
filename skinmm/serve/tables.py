"""The case store's tables, and what guards its audit trail, on SQLite or PostgreSQL."""

from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    inspect,
)

from skinmm.errors import InputError

_TABLES: Final = MetaData()
MODELS: Final = Table(
    "models",
    _TABLES,
    Column("model", String, primary_key=True),  # its checkpoints' SHA-256 sums
    Column("at", String, nullable=False),
    Column("card", JSON, nullable=False),
)
CASES: Final = Table(
    "cases",
    _TABLES,
    Column("number", Integer, primary_key=True),
    Column("at", String, nullable=False),  # UTC, ISO 8601
    Column("who", String, nullable=False),
    Column("patient", String, index=True),
    Column("model", String, nullable=False),
    Column("record", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    Column("image", LargeBinary),
    Column("verdict", String),
    Column("verdict_at", String),
    Column("verdict_who", String),
    sqlite_autoincrement=True,  # the number of a deleted case is never another one's
)
AUDIT: Final = Table(
    "audit",
    _TABLES,
    Column("number", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("cases", JSON, nullable=False),  # numbers: a trail that outlives a patient names none
    Column("detail", String),
    sqlite_autoincrement=True,
)
_REFUSED: Final = "the audit trail is append-only"
_LATER: Final = {  # SQLite's REPLACE deletes without firing the trigger of a deletion
    "update": "UPDATE ON audit",
    "delete": "DELETE ON audit",
    "replace": "INSERT ON audit WHEN NEW.number > 0 "
    "AND EXISTS (SELECT 1 FROM audit WHERE number = NEW.number)",
}
GUARDS: Final = {
    "sqlite": {
        f"audit_no_{verb}": [
            f"CREATE TRIGGER audit_no_{verb} BEFORE {when} "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
        ]
        for verb, when in _LATER.items()
    },
    "postgresql": {
        "audit_append_only": [
            "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$",
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
        ]
    },
}
_THERE: Final = {
    "sqlite": "SELECT lower(name) FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE tgrelid = 'audit'::regclass",
}
_ALONE: Final = {  # Python begins no transaction of SQLite's before it makes a table
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(7546660)",
}


def prepare(database: Connection, name: str, *, create: bool) -> None:
    """Makes what is missing of the tables and of what guards the trail, all or nothing."""
    dialect = database.dialect.name
    database.exec_driver_sql(_ALONE[dialect])
    if not create and not {*_TABLES.tables} <= {*inspect(database).get_table_names()}:
        raise InputError(f"store={name}: no case store; name it as skinmm serve was given it")
    _TABLES.create_all(database)
    there = {*database.exec_driver_sql(_THERE[dialect]).scalars()}
    for guard, statements in GUARDS[dialect].items():
        for statement in statements if guard not in there else ():
            database.exec_driver_sql(statement)


def careful(connection: Any, _: Any) -> None:
    """What is written survives a loss of power, and what is deleted is overwritten."""
    for setting in ("synchronous=EXTRA", "secure_delete=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {setting}")
