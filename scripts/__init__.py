"""The programs behind the shell scripts, and what the benchmarks share; nothing imports them."""
