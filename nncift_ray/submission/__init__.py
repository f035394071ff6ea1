"""Work as a Ray job: what is sent, to which server, and how to follow and stop it."""
