"""What ikpy-bench and sweep-bench measure and how they show it."""
