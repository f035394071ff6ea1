"""`nncift evaluate`: subsets of several methods, models taught with them, and what those can do."""
