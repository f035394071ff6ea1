"""Stages that teach a model with a subset and measure what it can do then."""
