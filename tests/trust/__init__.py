"""The nightly set: faults, fuzzing, attacks, load and reproducibility. `make trust` runs it."""
