"""The benchmark of quantizations: files, rounds, quality, speed, and the page that recommends one."""
