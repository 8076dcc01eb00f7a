"""The data of one node as a state that all nodes come to agree on: a core."""
