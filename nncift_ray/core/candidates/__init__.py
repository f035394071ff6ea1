"""Candidate pruning: which columns can be among a row's best, found without scoring all of them."""
