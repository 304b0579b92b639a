"""The demonstration that `make demo` runs: two look-alike guests, on real namespaces, kernel and processes."""
