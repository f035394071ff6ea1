"""Stages that fit the InfluenceNetwork to blocks of labels."""
