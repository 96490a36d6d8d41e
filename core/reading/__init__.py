"""Reading of what people write: files, settings, plain classes of their own, and words of earlier versions."""
