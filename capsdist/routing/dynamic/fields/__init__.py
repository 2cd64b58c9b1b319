"""Dynamic routing between grids of capsules: each parent sees the children of its field (`route_fields`)."""
