"""What a reader opens, hovers over and moves."""
