"""For tests: private servers as pytest fixtures (``plugin``), and faults on a wire (``proxy``)."""
