from lanecache.testing.sink_contract import *  # noqa: F403
from lanecache.testing.sink_contract import SOURCE  # noqa: F401
