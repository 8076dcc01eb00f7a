"""How entries come from node to node: streams of logs, repair, states. Sans-IO."""
