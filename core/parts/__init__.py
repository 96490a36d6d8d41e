"""The parts of an experiment that lie in no room of their own."""
