"""Types of interleaved rows, as ik_llama.cpp writes them."""
