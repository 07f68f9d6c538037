"""What is materialised, from what, with which metadata: one file a stage."""
