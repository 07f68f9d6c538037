"""CircuitSeer: pick training data for reasoning models by looking inside the model."""
