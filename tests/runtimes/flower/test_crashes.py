"""A worker may die at any moment of its work; its SuperNode knows when the next one asks for a task."""

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import Status
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from umbel.runtimes.flower.exchange import CRASHED
from umbel.runtimes.flower.private_crashes import take_back

RUN = 7
STEPS = ("claimed", "begun", "taken", "read", "half handed in", "handed in", "done")


@pytest.fixture
def state(monkeypatch):
    """A SuperNode's, with a task for a message that has arrived."""
    for name in ("run", "node", "task"):  # Flower wants a message to come from somewhere
        monkeypatch.setattr(TaskIdentity, f"_{name}_id", RUN)
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
    state.set_node_id(1)
    store(state, message())
    assert state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="") is not None
    return state


def message(reply_to=None):
    one = Message(RecordDict(), reply_to=reply_to) if reply_to else Message(RecordDict(), 1, "train")
    one.metadata.__dict__["_message_id"] = one.object_id
    return one


def store(state, one, whole=True):
    state.store_message(one)
    state.object_store.preregister(RUN, get_object_tree(one))
    for identifier, part in list(get_all_nested_objects(one).items())[: None if whole else 1]:
        state.object_store.put(identifier, part.deflate())


def work(state, last):
    """What a worker does, up to this step."""
    steps = STEPS[: STEPS.index(last) + 1]
    (task,) = state.get_tasks()
    assert state.claim_task(task.task_id)
    if "begun" in steps:
        assert state.activate_task(task.task_id)
    if "taken" in steps:
        (found,) = state.get_messages_legacy(run_ids=[RUN], is_reply=False, limit=1)
    if "read" in steps:
        state.object_store.delete(found.metadata.message_id)
    if "half handed in" in steps:
        store(state, message(found), whole="handed in" in steps)
    if "done" in steps:
        assert state.finish_task(task.task_id, "completed", "")


@pytest.mark.parametrize("last", STEPS)
def test_whatever_a_worker_dies_at_the_server_is_told(state, last):
    """A task that was not begun is there again. A reply is there for any other, an error where there was none; a reply
    that is not whole never will be, and keeps its SuperNode waiting."""
    work(state, last)
    assert take_back(state) is (last != "half handed in")
    (task,) = state.get_tasks()
    replies = state.get_messages_legacy(is_reply=True)
    if last == "claimed":
        assert (task.status.status, replies) == (Status.PENDING, [])
        assert state.claim_task(task.task_id)
        return
    assert (task.status.status, len(replies)) == (Status.FINISHED, 1)
    assert replies[0].has_error() is (last in ("begun", "taken", "read"))
    if replies[0].has_error():
        assert replies[0].error.code == CRASHED
        assert state.object_store.get_object_tree(replies[0].metadata.message_id)


def test_a_task_that_nobody_took_is_left_alone(state):
    assert take_back(state)
    (task,) = state.get_tasks()
    assert task.status.status == Status.PENDING
    assert state.get_messages_legacy(is_reply=True) == []
