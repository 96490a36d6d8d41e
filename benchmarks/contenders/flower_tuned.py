"""Flower's Ray simulation with the tuned Keras client: one compiled model kept per actor."""

from __future__ import annotations

from flower_app import simulate, tuned

if __name__ == "__main__":
    simulate(tuned)
