"""From a kernel's name to machine code: compiler processes and the object cache."""
