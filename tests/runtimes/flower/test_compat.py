"""The contract with Flower: each name, signature and wire path that Umbel uses beyond Flower's public API.

A release that keeps it can be used; where one does not, what fails here is to be ported. It starts no process.
"""

import ast
import hashlib
import importlib
import inspect
import logging
import time
import tomllib
from pathlib import Path

import httpx
import pytest
from flwr.app import Array, Message, RecordDict
from flwr.proto import node_pb2, runtime_pb2
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType

import umbel
from superlinks import NodeKey, called
from umbel.runtimes.flower import compat
from umbel.runtimes.flower.link import quota
from umbel.runtimes.flower.local import app_config, pyproject

ROOT = Path(umbel.__file__).parent
SERVERS = ("compat.py", "calls.py", "mail.py", "secured.py", "server.py")
# Values of ours, and fields of messages on their way, which are made to be written.
OWN = ("self.", "refusals.", "request.heartbeat_interval", "proto.metadata.message_id", "held[0].times")
PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation", "flwr.serverapp.strategy"}


def flower_imports(path):
    """Yield (module, name) of each import from Flower in a file, at its head and inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "flwr":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "flwr")


def test_one_file_alone_imports_what_flower_does_not_call_public():
    files = [path for path in (ROOT / "runtimes/flower").rglob("*.py") if path.name != "compat.py"]
    assert len(files) > 20
    beyond = {(path.name, module) for path in files for module, _ in flower_imports(path) if module not in PUBLIC}
    named = {path.name for path in files if '"flwr.' in path.read_text("utf-8")}  # for importlib
    assert (beyond, named) == (set(), set())


def test_what_is_imported_for_others_is_used_by_them():
    texts = [path.read_text("utf-8") for path in (ROOT / "runtimes/flower").rglob("*.py")]
    names = {node.id for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    tree = ast.parse((ROOT / "runtimes/flower/compat.py").read_text("utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("flwr")
        for alias in node.names
    }
    assert imported - names == set()


def test_the_releases_are_those_that_can_be_installed():
    (wanted,) = [
        one
        for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if one.startswith("flwr")
    ]
    major, minor = compat.RELEASES[-1].split(".")
    assert wanted == f"flwr>={compat.RELEASES[0]},<{major}.{int(minor) + 1}"


def test_another_release_is_taken_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        compat.warn_of_another_release("1.42.7")
        assert caplog.text == ""
        compat.warn_of_another_release("1.57.0")
    assert "Flower 1.57.0 is installed" in caplog.text


# How Umbel calls what it imports: (number of arguments by position, names of those by name). Attributes of modules are
# those that functions of `compat` return.
CALLS = {
    "AccountInfo": (0, "flwr_aid account_name"),
    "ArrayChunk": (1, ""),
    "ControlHttpClient": (1, "interceptors verify"),
    "Fab": (3, ""),
    "HeartbeatSender": (1, ""),
    "HeartbeatSender.start": (1, ""),
    "HeartbeatSender.stop": (1, ""),
    "ProtobufRequestContext": (3, ""),
    "RetryInvoker": (
        0,
        "wait_gen_factory recoverable_exceptions max_tries max_time on_success on_backoff on_giveup should_giveup "
        "wait_function",
    ),
    "RuntimeHttpClient": (1, "interceptors verify retry_invoker"),
    "RuntimeHttpClient.from_server_address": (1, "insecure root_certificates interceptors"),
    "RuntimeTokenHttpInterceptor": (1, ""),
    "RuntimeVersionHttpInterceptor": (0, "component_name"),
    "SuperExecAuthHttpInterceptor": (0, "master_secret protected_methods"),
    "build_fab_from_files": (1, ""),
    "bytes_to_public_key": (1, ""),
    "context_from_proto": (1, ""),
    "fab_to_proto": (1, ""),
    "get_all_nested_objects": (1, ""),
    "get_fused_config_from_fab": (2, ""),
    "get_object_body": (2, ""),
    "get_object_head_values_from_object_content": (1, ""),
    "get_object_tree": (1, ""),
    "make_message": (2, ""),
    "make_simple_http_retry_invoker": (0, ""),
    "make_task_heartbeat_fn_http": (1, ""),
    "message_from_proto": (1, ""),
    "message_to_proto": (1, ""),
    "no_object_id_recompute": (0, ""),
    "now": (0, ""),
    "remove_content_from_message": (1, ""),
    "run_from_proto": (1, ""),
    "start_parent_process_monitor": (1, ""),
    "verify_signature": (3, ""),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_called_takes_what_it_is_given(name):
    value = compat
    for part in name.split("."):
        value = inspect.getattr_static(value, part) if inspect.isclass(value) else vars(value)[part]
    bound = isinstance(value, classmethod)
    count, names = CALLS[name]
    signature = inspect.signature(value.__func__ if bound else value)
    signature.bind(*range(count + bound), **dict.fromkeys(names.split()))


# The fields of each message, by their numbers on the wire.
MESSAGES = {
    "AcquireTaskRequest": "supported_task_types=1",
    "ActivateNodeRequest": "public_key=1 heartbeat_interval=2",
    "ActivateNodeResponse": "node_id=1",
    "ConfirmMessageReceivedRequest": "node=1 run_id=2 message_object_id=3",
    "ConfirmMessageReceivedResponse": "",
    "DeactivateNodeRequest": "node_id=1",
    "DeactivateNodeResponse": "",
    "GetFabRequest": "node=1 hash_str=2 run_id=3",
    "GetFabResponse": "fab=1",
    "GetNodesRequest": "",
    "GetRunRequest": "node=1 run_id=2",
    "GetRunResponse": "run=1",
    "ListNodesRequest": "",
    "ListRunsRequest": "run_id=1",
    "Node": "node_id=1",
    "ObjectTree": "object_id=1 children=2",
    "PullAppMessagesRequest": "message_ids=2",
    "PullAppMessagesResponse": "messages_list=1 message_object_trees=2",
    "PullMessagesRequest": "node=1",
    "PullMessagesResponse": "messages_list=2 message_object_trees=3",
    "PullObjectRequest": "node=1 run_id=2 object_id=3",
    "PullObjectResponse": "object_found=1 object_available=2 object_content=3",
    "PullTaskInputRequest": "",
    "PushAppMessagesRequest": "messages_list=2 message_object_trees=3",
    "PushAppMessagesResponse": "message_ids=1 objects_to_push=2 session_id=3",
    "PushMessagesRequest": "node=1 messages_list=2 message_object_trees=3 clientapp_runtime_list=4",
    "PushMessagesResponse": "objects_to_push=3 session_id=4",
    "PushObjectRequest": "node=1 run_id=2 object_id=3 object_content=4 session_id=5",
    "PushObjectResponse": "stored=1",
    "PushTaskEventsRequest": "events=1",
    "PushTaskOutputRequest": "sub_status=2 details=3",
    "RegisterNodeFleetRequest": "public_key=1",
    "RegisterNodeFleetResponse": "node_id=1",
    "RegisterNodeRequest": "public_key=1 name=3",
    "SendNodeHeartbeatRequest": "node=1 heartbeat_interval=2",
    "SendNodeHeartbeatResponse": "success=1",
    "StartRunRequest": "fab=1",
    "StopRunRequest": "run_id=1",
    "StreamRunEventsRequest": "run_id=1 after_task_event_id=2",
    "TaskEvent": "id=1 event=5 data=6",
    "UnregisterNodeRequest": "node_id=1",
}


def test_messages_have_their_fields_on_the_wire():
    imported = {name for name, value in vars(compat).items() if hasattr(value, "DESCRIPTOR")}
    assert imported == set(MESSAGES)
    for name, fields in MESSAGES.items():
        found = {f"{field.name}={field.number}" for field in vars(compat)[name].DESCRIPTOR.fields}
        assert set(fields.split()) <= found, name


def test_words_of_the_wire():
    """Between a client of one release and a server of another: names of headers, and what parts a head from a body."""
    words = (
        compat.FLEET_HTTP_PUBLIC_KEY_HEADER,
        compat.FLEET_HTTP_SIGNATURE_HEADER,
        compat.TIMESTAMP_HEADER,
        compat.TASK_TOKEN_HEADER,
        compat.ACCESS_TOKEN_KEY,
    )
    assert words == (
        "flwr-public-key",
        "flwr-signature",
        "flwr-timestamp",
        "flwr-task-token",
        "flwr-oidc-access-token",
    )
    assert (compat.HEAD_VALUE_DIVIDER, compat.HEAD_BODY_DIVIDER, compat.CHUNK_BYTES) == (" ", b"\0", 5 << 20)
    assert (compat.SYSTEM_TIME_TOLERANCE, compat.TIMESTAMP_TOLERANCE) == (5, 300)
    assert (compat.SubStatus.COMPLETED, compat.SubStatus.FAILED, compat.SUPERLINK_NODE_ID) == ("completed", "failed", 1)
    assert compat.TaskType.SERVER_APP == "flwr-serverapp"
    assert (compat.NOOP_ACCOUNT_NAME, compat.NOOP_FLWR_AID) == ("none", "<id:none>")
    assert (compat.Status.RUNNING, compat.Status.FINISHED, compat.TaskType.CLIENT_APP) == (
        "running",
        "finished",
        "flwr-clientapp",
    )
    assert {"Array", "ArrayRecord", "ConfigRecord", "Message", "MetricRecord", "RecordDict"} <= set(
        compat.inflatable_class_registry
    )


# What a SuperLink answers at; a SuperNode answers its worker at the same paths of the Runtime API.
PATHS = {
    compat.FLEET_PATH: "activate-node confirm-message-received deactivate-node get-fab get-run pull-messages "
    "pull-object push-messages push-object register-node send-node-heartbeat unregister-node",
    compat.RUNTIME_PATH: "acquire-task confirm-message-received get-nodes pull-messages pull-object pull-task-input "
    "push-messages push-object push-task-events push-task-output send-task-heartbeat",
    compat.CONTROL_PATH: "list-nodes list-runs register-node start-run stop-run stream-run-events unregister-node",
}


def test_a_superlink_answers_at_these_paths():
    flower = compat.superlink_app("127.0.0.1", 1)
    paths = set(flower.openapi()["paths"])
    assert {prefix + name for prefix, names in PATHS.items() for name in names.split()} <= paths
    words = (compat.PULL_PATH, compat.REPLY_PATH, compat.OBJECT_PATH, compat.CONFIRM_PATH, compat.ACTIVATE_PATH)
    assert {*words, compat.HEARTBEAT_PATH, compat.PUSH_PATH, compat.OUTPUT_PATH} <= paths


def test_a_superlink_refuses_whoever_cannot_prove_his_key_with_a_status_of_its_own():
    """The layers go by these: 401 before all else, 412 for a node that is online, 403 about a run that has ended."""
    flower, key = compat.superlink_app("127.0.0.1", 1), NodeKey()
    request = compat.ActivateNodeRequest(public_key=key.public, heartbeat_interval=1800)
    assert called(flower, compat.ACTIVATE_PATH, request, NodeKey().proof).status == 401
    assert called(flower, compat.ACTIVATE_PATH, request, key.proof).status == 412
    state = compat.state_of(flower)
    node = state.create_node(compat.NOOP_FLWR_AID, "", key.public, 30)
    answer = called(flower, compat.ACTIVATE_PATH, request, key.proof)
    assert compat.ActivateNodeResponse.FromString(answer.body).node_id == node
    assert dict(answer.sent[0]["headers"])[b"content-type"] == compat.PROTOBUF_MEDIA_TYPE.encode()
    (found,) = state.get_node_info(node_ids=[node], statuses=["online"])
    assert found.online_until - time.time() == pytest.approx(3600, abs=60)
    run = state.create_run(None, None, "", {}, NOOP_FEDERATION_ID, None, compat.NOOP_FLWR_AID, TaskType.SERVER_APP)
    over = compat.ConfirmMessageReceivedRequest(node=compat.Node(node_id=node), run_id=run, message_object_id="a")
    assert called(flower, compat.CONFIRM_PATH, over, key.proof).status == 403


SETTINGS = """
control_address health_server_address host port insecure certificates superexec_auth_secret authn_plugin
event_log_plugin fleet_event_log_plugin enable_event_log artifact_provider enable_supernode_auth fleet_api_type
fleet_api_address simulation ssl_ca_certfile ssl_certfile ssl_keyfile database isolation runtime_dependency_install
"""


def test_a_superlinks_settings_are_those_that_are_given():
    """One more would be one that Umbel has not thought about."""
    settings = importlib.import_module("flwr.superlink.config_loader").SuperLinkLifespanConfig
    assert set(inspect.signature(settings).parameters) == set(SETTINGS.split())
    assert {"default", "access"} <= set(compat.log_config()["handlers"])


def test_a_superlinks_database_has_what_is_asked_of_it(tmp_path):
    state = compat.state_of(compat.superlink_app("127.0.0.1", 1, str(tmp_path / "superlink.db")))
    for question in (quota.STORED, quota.ROOTS):
        state.query(question, {"session": "a"})
    for question in (quota.HOLDING, quota.CUT):
        state.query(question)
    compat.let_session_go(state, "a", ["0" * 64])
    assert state.get_run_status(set()) == {}
    inspect.signature(state.cleanup_run).bind(1)
    assert len(state.object_store) == 0
    for known in (state, compat.state_of(compat.superlink_app("127.0.0.1", 1))):
        with compat.transaction(known):
            known.object_store.delete("0" * 64)
            assert known.object_store.get("0" * 64) is None
            assert known.store_object(1, "a session", "0" * 64, b"") is False
    assert state.get_task_by_token("a") is None


def test_clients_have_what_is_exchanged_in_them():
    """Their HTTP client, whose certificates are followed; and the way of a call through the interceptors."""
    client = compat.ControlHttpClient("http://127.0.0.1:9", verify=False)
    try:
        assert (type(client._client), client._base_url) == (httpx.Client, "http://127.0.0.1:9")
        inspect.signature(client._send).bind(None)
    finally:
        client.close()
    for name in ["StartRun", "StopRun", "ListRuns", "StreamRunEvents", "ListNodes", "RegisterNode", "UnregisterNode"]:
        inspect.signature(vars(compat.ControlHttpClient)[name]).bind(None, None)
    names = "AcquireTask GetNodes PullTaskInput PullMessages PushMessages PushObject PullObject ConfirmMessageReceived"
    for name in (*names.split(), "PushTaskEvents", "PushTaskOutput", "SendTaskHeartbeat"):
        inspect.signature(vars(compat.RuntimeHttpClient)[name]).bind(None, None)


def test_what_makes_calls_wait_can_be_taken_apart():
    """Ours is made of Flower's, with another patience."""
    invoker = compat.make_simple_http_retry_invoker()
    parts = "wait_gen_factory recoverable_exceptions max_tries max_time on_success on_backoff on_giveup"
    assert {*parts.split(), "should_giveup", "wait_function"} <= set(vars(invoker))
    assert (invoker.max_tries, invoker.max_time) == (None, None)


def test_a_run_is_played_as_it_was_submitted():
    """What Flower's own process does of it: the input of its task, and the configuration in the run's archive."""
    names = {field.name for field in runtime_pb2.PullTaskInputResponse.DESCRIPTOR.fields}
    assert {"context", "run", "fab", "task_id"} <= names
    content, _ = compat.build_fab_from_files({"pyproject.toml": pyproject(app_config("digits", [], 3, None)).encode()})
    task = runtime_pb2.PullTaskInputResponse(
        fab=compat.fab_to_proto(compat.Fab(hashlib.sha256(content).hexdigest(), content, {})),
    )
    config = compat.run_config_of(task)
    assert (config["experiment"], config["clients"], config["timeout_seconds"]) == ("digits", 3, 600.0)
    assert {field.name for field in node_pb2.NodeInfo.DESCRIPTOR.fields} >= {"node_id", "name", "last_activated_at"}


def test_messages_ask_a_class_whose_they_are():
    """What `play_as` patches; once Message() takes it for a parameter, the patch can go."""
    assert "run_id" not in inspect.signature(Message).parameters
    compat.play_as(2, 3, 1)
    made = Message(RecordDict(), 7, "train", ttl=60.0).metadata
    assert (made.run_id, made.src_node_id) == (3, 1)


def test_pieces_of_an_array_are_hashed_at_every_look_and_are_where_ours_are_put():
    """What `Chunk` and `raw_array` stand in for; once Flower remembers a hash and takes memory as it is, they go."""
    content = bytes(range(8))
    chunk = compat.ArrayChunk(memoryview(content))
    assert chunk.is_dirty
    assert chunk.deflate().endswith(content)
    array = Array("uint8", (8,), "numpy.ndarray", content)
    assert [piece.deflate() for _, piece in array.slice_array()] == [chunk.deflate()]
    assert list(array.__dict__)[-1] == "_chunks"
    assert "chunks" not in inspect.signature(Array).parameters


def assigned(path):
    """Yield the text of each attribute that a file assigns to."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield ast.unparse(node)


def test_nothing_else_of_flower_is_assigned_to():
    """In the server's files: what is assigned to an attribute there belongs to the object itself."""
    folder = ROOT / "runtimes/flower"
    files = [*(folder / "link").glob("*.py"), *map(folder.joinpath, SERVERS)]
    found = {f"{path.name}: {text}" for path in files for text in assigned(path) if not text.startswith(OWN)}
    assert found == {
        "compat.py: TaskIdentity.task_id",
        "compat.py: TaskIdentity.run_id",
        "compat.py: TaskIdentity.node_id",
        "compat.py: tasks.HEARTBEAT_DEFAULT_INTERVAL",
    }


def test_an_authenticator_has_the_methods_that_flower_asks():
    assert compat.ControlAuthnPlugin.__abstractmethods__ == {
        "__init__",
        "validate_tokens_in_metadata",
        "get_login_details",
        "get_auth_tokens",
        "refresh_tokens",
    }


def test_what_is_patched_is_there():
    for tasks in compat.task_states():
        assert (tasks.HEARTBEAT_PATIENCE, tasks.HEARTBEAT_DEFAULT_INTERVAL) == (2, 30)
