"""A lane in Python: what one row of ``shop.orders`` means for several keys.

``examples/order_lane.toml`` names this module; it is imported when lanecache starts::

    PYTHONPATH=examples lanecache tail examples/order_lane.toml    # shows what it would do
    PYTHONPATH=examples lanecache run examples/order_lane.toml
"""

import json
from collections.abc import Iterator

import lanecache


@lanecache.lane(
    "shop.orders",
    prefix=["order:", "open-order:", "orders-of:", "bought:"],
    columns=["id", "customer_id", "product_id", "quantity", "status"],
)
def order_keys(change: lanecache.RowChange) -> Iterator[lanecache.Operation]:
    before, after = change.before, change.after
    for row in (before, after):
        if row is not None:
            # The application computes these two; they are forgotten when an order may change them.
            yield lanecache.Delete(f"orders-of:{row['customer_id']}")
            yield lanecache.Delete(f"bought:{row['customer_id']}:{row['product_id']}")
    if before is not None:
        yield lanecache.Delete(f"open-order:{before['customer_id']}:{before['id']}")
    if after is None:
        yield lanecache.Delete(f"order:{change.row['id']}")
        return
    yield lanecache.Set(f"order:{after['id']}", json.dumps(dict(after)).encode())
    if after["status"] != "shipped":
        key = f"open-order:{after['customer_id']}:{after['id']}"
        yield lanecache.Set(key, str(after["quantity"]).encode(), ttl_s=7 * 86400)
