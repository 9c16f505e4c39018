"""What runs programs: the workers' machine code, dynamic scheduling, cores and memory."""
