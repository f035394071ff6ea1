"""The recipe: one frozen tree from YAML, overridden by the command line, checked before Ray starts.

Only the candidates have no default::

    run_dir: runs/mine
    data: {candidates: [corpus.jsonl], targets: [benchmark.jsonl]}   # targets optional
    teacher: delift_se
    selection: {objective: facility_location, budget: 0.1}           # fraction, count, {tokens: 5M}
"""
