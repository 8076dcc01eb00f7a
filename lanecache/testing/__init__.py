"""For tests, those of a project that uses lanecache too. It comes as a pytest plugin by itself.

======================  ========================================================================
fixtures (``plugin``)   private MariaDB, MySQL, Redis, Valkey and memcached servers; a started
                        service; a target in memory. See ``lanecache.testing.plugin``
``BinlogBuilder``       a binlog made by hand, for tests of lanes without any server:
                        ``lanecache.testing.binlog``
``SinkContract``        what every sink has to do, for a sink of one's own: subclass it in a test
                        module: ``lanecache.testing.sink_contract``
``FaultProxy``          a proxy that delays, cuts and loses what goes to a server:
                        ``lanecache.testing.proxy``
``simulate``            a whole cluster in one process, on virtual time, under faults that a seed
                        decides: ``lanecache.testing.simulation``
======================  ========================================================================

A test of a lane that needs no server::

    from lanecache.testing.binlog import BinlogBuilder

    async def test_products_are_cached(lanecache_service, memory_sink, tmp_path):
        binlog = BinlogBuilder()
        binlog.transaction(("write", [(1, "Teapot")]))  # table shop.product: id, name
        await lanecache_service({
            "source": {"url": binlog.save(tmp_path)},
            "sinks": {"main": {"url": memory_sink.url}},
            "lanes": [{"table": "shop.product", "key": "product:{id}"}],
        })
        await memory_sink.wait(lambda sink: sink.get("product:1"))
        assert memory_sink.snapshot() == {"product:1": b'{"id":1,"name":"Teapot"}'}

One seed of the simulator::

    from lanecache.testing.simulation.run import Failure, Options, simulate

    def test_the_cluster_converges():
        outcome = simulate(17, Options(nodes_max=8))
        assert not isinstance(outcome, Failure), outcome  # it tells the seed and the story
"""
