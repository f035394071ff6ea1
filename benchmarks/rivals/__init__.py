"""Every rival in one table: six pools, one fast fine-tuning, cells that resume."""
