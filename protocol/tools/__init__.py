"""Tools: how a model is told of them, and the calls in what it writes."""
