"""What the pages and the package say, read as text; what the book promises."""
