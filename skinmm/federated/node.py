"""Client of Flower's Fleet API: connects, answers messages, and reconnects."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from skinmm.errors import InputError, print_line
from skinmm.federated.fleet import Nodes, inflate, set_identity

HEARTBEAT: Final = 30.0
"""A client without a sign of life for two such times, in seconds, counts as dead."""
PAUSE: Final = 1.0  # seconds between two questions for work

Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]


def read_private_key(path: str) -> Keys:
    """Return the private key of a file that `ssh-keygen -t ecdsa -b 384 -N ''` wrote."""
    try:
        key: Any = load_ssh_private_key(Path(path).read_bytes(), None)
    except Exception as error:
        raise InputError(f"private_key={path}: not readable: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"private_key={path}: not of type ecdsa; ssh-keygen -t ecdsa -b 384")
    return key, key.public_key()


def run_client(
    app: ClientApp,
    server: str,
    *,
    tls: bool,
    certificate: str | None = None,
    keys: Keys | None = None,
    is_finished: Callable[[], bool] = lambda: False,
) -> None:
    """Connect a ClientApp to a server and answer its messages until the run has ended.

    A server that does not answer is asked again; a failure of the app is sent as its type alone.
    """
    keys, is_silent = keys or generate_key_pairs(), False
    interceptors: Any = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(*keys)]
    authority: Any = certificate and Path(certificate).read_bytes()
    while not is_finished():
        try:
            with FleetHttpClient.from_server_address(
                server, not tls, authority, interceptors=interceptors
            ) as client:
                node = _connect(client, public_key_to_bytes(keys[1]))
                print_line(f"connected to {server}")
                is_silent = False
                _answer_messages(client, node, app, is_finished)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if not is_silent:
                print_line(f"{server} does not answer ({_explain(error)}); trying again")
            is_silent = True
            time.sleep(PAUSE)


def _explain(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return "this key is unknown or still connected" if status < 500 else f"HTTP {status}"  # noqa: PLR2004
    return str(error) or type(error).__name__


def _connect(client: FleetHttpClient, key: bytes) -> Node:
    with suppress(httpx.HTTPStatusError):  # the key is on the server's list, or from before
        client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
    reply = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT))
    return Node(node_id=reply.node_id)


def _answer_messages(
    client: FleetHttpClient, node: Node, app: ClientApp, is_finished: Callable[[], bool]
) -> None:
    ended = threading.Event()

    def send_heartbeats() -> None:
        while not ended.wait(HEARTBEAT / 6):
            with suppress(Exception):  # the next question for work fails too
                client.SendNodeHeartbeat(
                    SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT)
                )

    threading.Thread(target=send_heartbeats, daemon=True).start()
    try:
        while not is_finished():
            response = client.PullMessages(PullMessagesRequest(node=node))
            if not response.messages_list:
                time.sleep(PAUSE)
                continue
            head = message_from_proto(response.messages_list[0])
            tree = response.message_object_trees[0]
            _push(client, node, answer(app, _pull(client, node, head, tree)))
    finally:
        ended.set()


def _pull(client: FleetHttpClient, node: Node, head: Message, tree: ObjectTree) -> Message:
    run_id, name = head.metadata.run_id, head.metadata.message_id
    message = inflate(tree, make_pull_object_fn_protobuf(client.PullObject, node, run_id), head)
    make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id)(name)
    return message


def answer(app: ClientApp, message: Message) -> Message:
    """Return the app's answer, or an error that discloses nothing about this machine."""
    run_id, node = message.metadata.run_id, message.metadata.dst_node_id
    context = Context(run_id, node, UserConfig(), RecordDict(), UserConfig())
    try:
        return app(message, context)
    except Exception as error:
        print_line(f"{message.metadata.message_type}: {type(error).__name__}: {error}")
        reason = f"the client failed ({type(error).__name__}); its own output has the reason"
        return Message(Error(0, reason), reply_to=message)


def _push(client: FleetHttpClient, node: Node, message: Message) -> None:
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        objects, tree = get_all_nested_objects(message), get_object_tree(message)
        envelope = remove_content_from_message(message) if message.has_content() else message
        reply = client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(envelope)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
        push = make_push_object_fn_protobuf(
            client.PushObject, node, message.metadata.run_id, reply.session_id
        )
        push_objects(objects, push, object_ids_to_push={*reply.objects_to_push})


class SimulatedGrid(Nodes):
    """Flower grid that calls the applications of this process one after another."""

    def __init__(self, apps: Mapping[str, ClientApp]) -> None:
        set_identity(1, 1)
        self.accepted, self.names = set(), dict(enumerate(apps, 2))
        self._apps = apps

    def list_connected(self) -> set[int]:
        """Return all nodes."""
        return {*self.names}

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> Iterable[Message]:
        """Return the answers of the applications."""
        return [answer(self._apps[self.names[m.metadata.dst_node_id]], m) for m in messages]
