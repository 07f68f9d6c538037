"""Side-by-side measurements: progress on stderr, and last on stdout one line of JSON."""
