"""A third runtime: clients elsewhere, who send pickled bytes, and edge servers that add runs of 16 of them up."""

from __future__ import annotations

import pickle

from simulations import simulation
from umbel.clients.round import train_client
from umbel.clients.tensorflow.engine import TensorFlowEngine
from umbel.core.runtime import WAIT, Parties, added_up
from umbel.core.tree import LEAF
from umbel.runtimes.team import workers_of
from umbel.runtimes.wrapping import Wrapping

RUN = 2 * LEAF  # clients of an edge server
_workers: dict[tuple, TensorFlowEngine] = {}


class Third(Wrapping):
    def __init__(self):
        self.is_live, self.parts = False, 0

    def open(self, experiment, memory, choices=None):
        self.runtime = simulation(experiment)  # for the server's own model
        self.memory, self.population = memory, experiment.population
        key = workers_of(experiment.resolved)
        self.worker = _workers[key] = _workers.get(key) or TensorFlowEngine(experiment.resolved)
        self.worker.experiment = experiment.resolved
        return self.runtime.open(experiment, memory, choices)

    def train(self, work, summation):
        self.parties, run = Parties(), []
        for assignment in work:
            run += [] if assignment is WAIT else [assignment]
            if assignment is WAIT or len(run) == RUN:
                yield from self.played(run, summation)
                run = []
        yield from self.played(run, summation)

    def ask(self, messages, reply_bytes):
        return self.parties.ask(messages)

    def played(self, run, summation):
        arrivals = [pickle.loads(pickle.dumps(self.trained(assignment))) for assignment in run]
        if not summation.subtotals or not run:
            yield from arrivals
            return
        self.parts += 1
        yield added_up(arrivals, summation)

    def trained(self, assignment):
        broadcast, client, key, *_ = assignment
        rows, data, kept = self.population.indices(client), self.population.resident(), self.memory.read(client)
        played = train_client(self.worker, broadcast, client, key.derive("client", client), data, rows, kept)
        return self.parties.arrival(assignment, *played)
