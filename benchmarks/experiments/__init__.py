"""Scripts behind the figures in ``benchmarks/results/``; not part of the installed package."""
