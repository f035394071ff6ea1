"""What an evaluation measures, and which differences are more than noise."""
