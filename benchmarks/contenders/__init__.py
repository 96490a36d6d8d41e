"""One small program per contender, each run in an interpreter of its own."""
