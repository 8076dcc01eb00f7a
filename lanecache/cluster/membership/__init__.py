"""Who is there: SWIM with Lifeguard, sans-IO."""
