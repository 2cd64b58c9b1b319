"""What a training takes, before it is started: memory, FLOP, communication, time. Pure functions of sizes."""
