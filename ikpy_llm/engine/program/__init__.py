"""From a graph to a program: fusion, lowering to records, placing of buffers."""
