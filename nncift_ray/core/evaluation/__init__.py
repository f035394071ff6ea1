"""What an evaluation computes: which held-out rows are asked, and statistics of their scores."""
