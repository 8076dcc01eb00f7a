"""Ingest: reads a database's binlog as a replica does, and turns it into transactions.

Files follow the flow of the data. ``address`` (the source's URL), ``login`` (connections and what
their errors mean), ``server`` (facts, positions, privileges, columns), ``source`` (the dump),
``protocol`` (bytes of the connection to binlog events).
"""
