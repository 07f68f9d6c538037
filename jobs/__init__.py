"""What runs together, and when."""
