"""A federation on real hosts: a kit for each party, the processes that a kit starts, and who is connected.

    certificates   the authority, what it signs, and what is wrong with a certificate
    kits           a folder per party: made by `umbel deploy init`, read by everything else
    authority      the server's certificate and the authority, replaced while runs go on
    rotation       a client's keys and the operator's token, replaced between runs
    texts          what a kit holds besides: start script, systemd unit, compose file, nginx configuration
    supervisor     child processes that are started again, until the party is asked to stop
    parties        what the server and a client consist of
    federation     all parties on one machine; who is connected

Flower itself is reached through `runtimes.flower.secured` and `.remote` alone.
"""
