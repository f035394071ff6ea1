"""What brings any stage to its end: its protocol, the driver, the pool, who dies and who waits."""
