"""Fills: a value that is not there is made once for the whole cluster."""
