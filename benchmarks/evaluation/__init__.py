"""Does the subset work? The study of benchmarks/evaluation_cpu.md."""
