"""Sources of examples. Each is a frozen value that loads when first needed."""
