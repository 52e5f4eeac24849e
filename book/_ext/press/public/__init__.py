"""What search engines, shared links and lost readers see."""
