"""The tests' servers come from the package's own pytest plugin (``lanecache.testing.plugin``)."""

from importlib.metadata import entry_points

# Where lanecache is installed, even as a link to this checkout, pytest has loaded it already.
if not entry_points(group="pytest11", name="lanecache"):
    pytest_plugins = ["lanecache.testing.plugin"]
