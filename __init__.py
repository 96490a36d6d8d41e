"""Umbel: federated learning for Keras."""
