"""Options of training that go beyond the paper, judged by labels of pairs that no training saw."""
