"""The contract with Flower: each name, signature and wire path that Umbel uses beyond Flower's public API.

A release that keeps it can be used; where one does not, what fails here is to be ported. It starts no process.
"""

import ast
import importlib
import inspect
import logging
import tomllib
from pathlib import Path

import httpx
import pytest
from flwr.superlink.grid.http_grid import HttpGrid

import umbel
from umbel.runtimes.flower import compat

ROOT = Path(umbel.__file__).parent
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
    texts = [path.read_text("utf-8") for path in (ROOT / "runtimes/flower").rglob("*.py") if path.name != "compat.py"]
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
    "ControlHttpClient.from_server_address": (1, "insecure root_certificates interceptors"),
    "Fab": (3, ""),
    "HeartbeatSender": (1, ""),
    "HeartbeatSender.start": (1, ""),
    "HeartbeatSender.stop": (1, ""),
    "ObjectPushError": (3, ""),
    "ProtobufClient": (1, "interceptors verify timeout retry_invoker"),
    "ProtobufRequestContext": (3, ""),
    "RuntimeHttpClient.from_server_address": (1, "insecure root_certificates interceptors"),
    "RuntimeTokenHttpInterceptor": (1, ""),
    "RuntimeVersionHttpInterceptor": (0, "component_name"),
    "SuperExecAuthHttpInterceptor": (0, "master_secret protected_methods"),
    "build_fab_from_files": (1, ""),
    "bytes_to_public_key": (1, ""),
    "context_from_proto": (1, ""),
    "fab_to_proto": (1, ""),
    "get_all_nested_objects": (1, ""),
    "get_object_body": (2, ""),
    "get_object_head_values_from_object_content": (1, ""),
    "get_object_tree": (1, ""),
    "iterate_object_tree": (1, ""),
    "make_confirm_message_received_fn_protobuf": (3, ""),
    "make_pull_object_fn_protobuf": (3, ""),
    "message_from_proto": (1, ""),
    "message_to_proto": (1, ""),
    "no_object_id_recompute": (0, ""),
    "now": (0, ""),
    "remove_content_from_message": (1, ""),
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
    "ConfirmMessageReceivedRequest": "node=1 run_id=2 message_object_id=3",
    "DeactivateNodeRequest": "node_id=1",
    "ListNodesRequest": "",
    "ListRunsRequest": "run_id=1",
    "Node": "node_id=1",
    "ObjectTree": "object_id=1 children=2",
    "PullAppMessagesRequest": "message_ids=2",
    "PullMessagesResponse": "messages_list=2 message_object_trees=3",
    "PullTaskInputRequest": "",
    "PushAppMessagesRequest": "messages_list=2 message_object_trees=3",
    "PushObjectRequest": "node=1 run_id=2 object_id=3 object_content=4 session_id=5",
    "PushObjectResponse": "stored=1",
    "PushTaskEventsRequest": "events=1",
    "PushTaskOutputRequest": "sub_status=2 details=3",
    "RegisterNodeRequest": "public_key=1 name=3",
    "SendTaskHeartbeatRequest": "",
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
    paths = set(importlib.import_module("flwr.superlink.main").create_app().openapi()["paths"])
    assert {prefix + name for prefix, names in PATHS.items() for name in names.split()} <= paths
    assert {compat.PULL_PATH, compat.PUSH_PATH, compat.REPLY_PATH, compat.OBJECT_PATH} <= paths


def test_clients_have_what_is_exchanged_in_them():
    """Their HTTP client, whose certificates are followed; and the way of a call through the interceptors."""
    client = compat.ProtobufClient("http://127.0.0.1:9", verify=False)
    try:
        assert (type(client._client), client._base_url) == (httpx.Client, "http://127.0.0.1:9")
        inspect.signature(client._send).bind(None)
    finally:
        client.close()
    for name in ["StartRun", "StopRun", "ListRuns", "StreamRunEvents", "ListNodes", "RegisterNode", "UnregisterNode"]:
        inspect.signature(vars(compat.ControlHttpClient)[name]).bind(None, None)
    names = "AcquireTask PullTaskInput PullMessages PushMessages PushObject PullObject ConfirmMessageReceived"
    for name in (*names.split(), "PushTaskEvents", "PushTaskOutput", "SendTaskHeartbeat"):
        inspect.signature(vars(compat.RuntimeHttpClient)[name]).bind(None, None)


def test_a_grid_has_the_client_that_mail_goes_through():
    grid = HttpGrid("127.0.0.1:9", insecure=True, token="a")
    try:
        assert isinstance(grid._runtime_client, compat.RuntimeHttpClient)
        assert isinstance(grid._retry_invoker, compat.RetryInvoker)
        assert {"should_giveup", "wait_function", "on_backoff"} <= set(vars(grid._retry_invoker))
        assert grid.node.node_id == 1
    finally:
        grid.close()


def test_an_authenticator_has_the_methods_that_flower_asks():
    assert compat.ControlAuthnPlugin.__abstractmethods__ == {
        "__init__",
        "validate_tokens_in_metadata",
        "get_login_details",
        "get_auth_tokens",
        "refresh_tokens",
    }


# What is patched: parameters as Flower calls it, and the file in which it is looked up in its module at each call.
HANDLERS = {
    "fleet_handlers": {
        "pull_messages": "request state store",
        "confirm_message_received": "request state store",
        "activate_node": "request state",
        "push_messages": "request state",
        "push_object": "request state",
    },
    "runtime_handlers": {"push_task_output": "request state task"},
    "node_handlers": {"acquire_task": "request state"},
}


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [(module, name, said) for module, names in HANDLERS.items() for name, said in names.items()],
)
def test_a_handler_has_the_parameters_of_what_stands_in_for_it(module, name, parameters):
    handler = vars(vars(compat)[module]())[name]
    assert list(inspect.signature(handler).parameters) == parameters.split()


def test_the_states_and_the_loop_have_what_is_set_in_them():
    for tasks in compat.task_states():
        assert (tasks.HEARTBEAT_PATIENCE, tasks.HEARTBEAT_DEFAULT_INTERVAL) == (2, 30)
    for nodes, states in compat.link_states():
        assert nodes.HEARTBEAT_PATIENCE == 2
        assert list(inspect.signature(states.activate_node).parameters) == ["self", "node_id", "heartbeat_interval"]
    assert dict(compat.databases().SQLITE_PRAGMAS)["journal_mode"] == "WAL"
    loop, connection, command = compat.node_loop(), compat.node_connection(), compat.superlink_command()
    assert next(iter(inspect.signature(loop._pull_and_store_message).parameters)) == "state"
    assert {"max_tries_per_object", "initial_backoff", "backoff_cap"} <= set(
        inspect.signature(loop.pull_objects).parameters
    )
    assert inspect.ismodule(loop.time)
    assert len(inspect.signature(connection.make_push_object_fn_protobuf).parameters) == 4
    assert not inspect.signature(connection.make_simple_http_retry_invoker).parameters
    assert not inspect.signature(compat.superexec_module().make_simple_http_retry_invoker).parameters
    assert inspect.ismodule(command.uvicorn)
    for entry in (command.flower_superlink, compat.superexec_command(), compat.supernode_command()):
        assert not inspect.signature(entry).parameters
    assert {"ActivateNode", "DeactivateNode"} <= set(vars(compat.node_client()))
