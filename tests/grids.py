"""A Flower Grid inside this process, whose nodes are calls of the ClientApp."""

from __future__ import annotations

import itertools

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from umbel.runtimes.flower.client import app

FIRST_NODE = 1000


class ProcessGrid(Grid):
    """A Grid whose nodes are calls of the ClientApp, one Context each.

    tamper: {client: content → content}, done to replies to "train". answers: {client: Error}, instead of them; once:
    the same, for the first. silent: clients that do not answer, until `answer` makes them.
    """

    def __init__(self, path, clients, tamper=None, answers=None, silent=(), once=None, partition=lambda node: node):
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.tamper, self.answers, self.silent, self.once = tamper or {}, answers or {}, silent, once or {}
        self.late = {}
        config = {"experiment": str(path), "overrides": "[]"}
        self.contexts = {
            FIRST_NODE + node: Context(1, FIRST_NODE + node, {"partition-id": partition(node)}, RecordDict(), config)
            for node in range(clients)
        }
        self._numbers, self._replies, self.sent = itertools.count(1), {}, []

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids):
        # Last first: the order of arrival must not matter.
        return [self._replies.pop(one) for one in sorted(message_ids, key=int, reverse=True) if one in self._replies]

    def _push(self, message):
        identifier = message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        self.sent.append(message)
        client = message.metadata.dst_node_id - FIRST_NODE
        is_training = message.metadata.message_type == "train"
        if is_training and client in self.silent:
            self.late[identifier] = message
            return identifier
        self._answer(identifier, message, is_training, client)
        return identifier

    def answer(self, identifier):
        """Answer as a silent client should have."""
        self._answer(identifier, self.late[identifier], False, None)

    def _answer(self, identifier, message, is_training, client):
        try:
            reply = app(message, self.contexts[message.metadata.dst_node_id])
            if is_training and client in self.once:
                reply = Message(self.once.pop(client), reply_to=message)
            elif is_training and client in self.answers:
                reply = Message(self.answers[client], reply_to=message)
            elif is_training and client in self.tamper:
                reply = Message(self.tamper[client](reply.content), reply_to=message)
        except Exception as error:  # as flwr-clientapp does
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        self._replies[identifier] = reply

    def get_node_ids(self):
        return list(self.contexts)

    def set_run(self, run): ...
    def create_message(self, *arguments): ...
    def send_and_receive(self, messages, *, timeout=None): ...

    @property
    def run(self): ...
