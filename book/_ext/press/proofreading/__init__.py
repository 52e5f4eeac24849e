"""Links and spelling, read over; the build does without."""
