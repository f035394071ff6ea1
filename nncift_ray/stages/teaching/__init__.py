"""Stages that draw what the teacher is asked, ask it, and turn answers into labels."""
