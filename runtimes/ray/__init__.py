"""Ray: the clients of one experiment on all machines of a cluster. The only folder that knows Ray."""
