"""The machine below: files, crash points, terminals, and the backend that Keras has."""
