"""Ray lives here: one file a stage, one driver for all."""
