"""The server's side: the round loop, the edge where updates become weights, and Flower's strategies by name."""
