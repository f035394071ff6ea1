"""Every rival in one table: five pools, one fast fine-tuning, cells that resume."""
