"""What one node holds in memory: values, bounds, and what goes when there is no room."""
