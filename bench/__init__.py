"""Side-by-side measurements; each prints progress to stderr and one line of JSON, last, to stdout."""
