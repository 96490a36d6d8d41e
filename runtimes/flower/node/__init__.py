"""A client's process: a node of a SuperLink that speaks its Fleet API itself, and trains.

    python -m umbel.runtimes.flower.node PARENT SERVER --client N --clients M --home FOLDER --state FOLDER
        [--authority FILE] [--key FILE] [--replicas N]

`fleet` makes the calls, `proof` signs them, `presence` comes and goes, `heart` is heard, `inbox` and `outbox` carry
messages, `contexts` says what a run is, `service` works, and `__main__` is the command. To a SuperLink it is a
SuperNode; nothing of Flower's own is started.
"""
