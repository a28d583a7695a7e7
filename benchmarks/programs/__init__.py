"""Programs that run one cell of a comparison in a fresh process: `ours_*` in .venv, `peer_*` in .venv-bench.

Each is started as `python -m benchmarks.programs.NAME SPEC.json` and writes its figures to the file that
the spec names as `result`.
"""
