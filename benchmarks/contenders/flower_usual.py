"""Flower's Ray simulation with the usual Keras client: a model built and compiled for each message."""

from __future__ import annotations

from flower_app import simulate, usual

if __name__ == "__main__":
    simulate(usual)
