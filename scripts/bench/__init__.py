"""What `make bench` measures, one module per theme; `method` says how."""
