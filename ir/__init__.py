"""What a model is: a graph of ATen ops with named weights, the one way to edit it, and what can be said about it."""
