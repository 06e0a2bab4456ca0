"""Which groups go: from scores, targets and selectors to the number of survivors of each family."""
