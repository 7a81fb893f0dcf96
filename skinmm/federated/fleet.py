"""Server of Flower's Fleet API over HTTP, with TLS and client keys.

Flower's other interfaces, which start applications, are not offered, so that neither side executes
code of the other.
"""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from fastapi import FastAPI
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.task_pb2 import TaskStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error.http import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from skinmm.errors import InputError

PATIENCE: Final = 300.0  # seconds for the arrays of a message that has begun to arrive


class Nodes(InMemoryGrid):
    """Flower grid of the accepted clients.

    Attributes:
        accepted: nodes that take part.
        names: name of the centre of each node.
    """

    accepted: set[int]
    names: dict[int, str]

    def list_connected(self) -> set[int]:
        """Return all connected nodes, accepted or not."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes that are accepted."""
        return self.accepted & self.list_connected()


class FleetGrid(Nodes):
    """Flower grid of the clients connected to this process; see `serve_fleet`."""

    def __init__(self, factory: LinkStateFactory, run_id: int) -> None:
        super().__init__(factory)
        self.accepted, self.names = set(), {}
        self._targets: dict[str, int] = {}  # message -> node
        self._run_id = run_id
        self.set_run(self.state.get_run_info(run_ids=[run_id])[0])

    def list_connected(self) -> set[int]:
        """Return the nodes that are connected."""
        return {*self.state.get_nodes(self._run_id)}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store messages with their arrays, as Flower's HttpGrid sends them."""
        stored = []
        for message in messages:
            with no_object_id_recompute():
                message.metadata.__dict__["_message_id"] = message.object_id
                objects = get_all_nested_objects(message)
                session = self.state.start_session(self._run_id)
                envelope = remove_content_from_message(message)
                is_stored, missing = self.state.store_message_and_object_tree(
                    envelope, get_object_tree(message), session
                )
                for name in missing:
                    self.state.store_object(self._run_id, session, name, objects[name].deflate())
            if is_stored:
                stored.append(message.metadata.message_id)
                self._targets[message.metadata.message_id] = message.metadata.dst_node_id
        return stored

    def _read(self, name: str) -> bytes:
        content = self.state.object_store.get(name)
        if content is None:
            raise ObjectPullError(name, "unknown")
        if not content:
            raise ObjectUnavailableError(name)
        return bytes(content)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that have arrived, with their arrays."""
        replies = []
        for reply in self.state.get_message_res(message_ids={*message_ids}, run_id=self._run_id):
            name, store = reply.metadata.message_id, self.state.object_store
            if reply.metadata.src_node_id == SUPERLINK_NODE_ID:  # Flower's own, of a dead client
                node = self._targets.get(reply.metadata.reply_to_message_id, 0)
                reply.metadata.__dict__["_src_node_id"] = node
            if not reply.has_error():
                try:
                    reply = inflate(store.get_object_tree(name), self._read, reply)
                except Exception as error:
                    reason = f"its arrays did not arrive ({type(error).__name__})"
                    meta = reply.metadata
                    reply = Message(error=Error(0, reason), metadata=meta)  # type: ignore[call-overload]
                store.delete(name)
            replies.append(reply)
        self.state.delete_messages({reply.metadata.reply_to_message_id for reply in replies})
        return replies


def inflate(tree: ObjectTree, pull: Callable[[str], bytes], head: Message) -> Message:
    """Return a message with its content; wait until all its parts have arrived."""
    names = list({part.object_id for part in iterate_object_tree(tree)})
    message: Any = inflate_object_from_contents(
        tree.object_id, pull_objects(names, pull, max_time=PATIENCE)
    )
    message.metadata.__dict__["_message_id"] = head.metadata.message_id
    return message


def serve_fleet(
    host: str, port: int, certificate: str | None, private_key: str | None, clients: str | None
) -> FleetGrid:
    """Start the Fleet API in a thread of this process, and return the grid of its clients.

    `clients` is a file of public keys; no other client is accepted. None: every one is.
    """
    manager, objects = NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, objects)
    state: Any = factory.state()
    run_id = state.create_run(
        None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    state.task_store[task_id].status.CopyFrom(TaskStatus(status=Status.RUNNING))
    set_identity(run_id, task_id)
    for key in read_public_keys(clients) if clients else ():
        state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory, app.state.enable_supernode_auth = factory, clients is not None
    app.include_router(fleet_router)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            ws="none",
            lifespan="off",
            log_level="error",
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise InputError(f"host={host} port={port}: cannot listen there; choose another port")
        time.sleep(0.05)
    return FleetGrid(factory, run_id)


def set_identity(run_id: int, task_id: int) -> None:
    """Make this process the sender of the run's messages."""
    TaskIdentity.run_id, TaskIdentity.task_id = run_id, task_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def read_public_keys(path: str) -> list[bytes]:
    """Return the public keys in a file with lines as in `key.pub`."""
    keys = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            key: Any = load_ssh_public_key(line.encode())
            keys.append(public_key_to_bytes(key))
        except Exception as error:
            raise InputError(f"clients={path}: line {number} is not a public key") from error
    return keys
