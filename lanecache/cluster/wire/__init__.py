"""What the nodes say to each other, and how it is sealed: messages, packets, streams, keys."""
