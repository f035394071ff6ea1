"""The InfluenceNetwork: what it is trained on, how, and how well it stands in for the teacher."""
