"""One layer at a time: runs that stop at a call, a layer as a matrix product, sums per channel."""
