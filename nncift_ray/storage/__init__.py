"""Tables, manifests and corpora in and out, through pyarrow file systems."""
