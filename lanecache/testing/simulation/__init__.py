"""Whole clusters of real nodes in one process, on virtual time, under faults that a seed decides.

::

    python -m lanecache.testing.simulation --seeds 1000 --jobs 2
    python -m lanecache.testing.simulation --seeds 1000 --jobs 2 --no-data    # members only
    python -m lanecache.testing.simulation --first 17 --seeds 1 --trace
    python -m lanecache.testing.simulation measure --help

From the bottom up: ``world`` (time, what is to happen, the trace), ``network`` (packets and
links), ``streams`` (TCP), ``names`` (DNS), ``hosts`` (a machine with a node on it), ``checkers``,
``scenario`` (a cluster in a world), ``faults``, ``run`` (one seed), ``plants`` (faults in the
cluster's code that the checkers have to find), ``measurements``.

For data: ``database`` (a model of a source), ``writes`` (all that was written, by its order),
``lens`` (how a node's data is looked at), ``users`` and ``ingests`` (who writes),
``data_checkers``, ``data_agreement``, ``data`` (puts it into a scene), ``data_plants``.
"""
