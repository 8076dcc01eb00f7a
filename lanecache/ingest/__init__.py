"""Ingest: reads a database's binlog as a replica does, and turns it into transactions.

Files follow the flow of the data:

- ``address`` (the source's URL), ``login`` and ``refusal`` (connections, and what their errors
  mean), ``server`` with ``facts`` and ``schema`` (the control connection: settings, positions,
  tables), ``checks`` (``lanecache check``);
- ``source`` (the dump), ``protocol`` and ``framing`` (bytes of a connection to binlog events);
- ``decoder`` with ``binlog``, ``table``, ``tables``, ``rows``, ``columns``, ``values``,
  ``json_binary``, ``charsets`` (events to transactions, sans-IO), ``statements`` and the ``sql_*``
  files (what a statement does to cached tables);
- ``spill`` (transactions that are too large for memory), ``engine`` (all of it together).
"""
