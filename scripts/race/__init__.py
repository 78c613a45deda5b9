"""The race track: our server and llama-server on the same model, turn by turn, and what the turns say.

`ratios` is the arithmetic, `peer` finds llama-server and holds its flags, `racers` runs servers (and holds still the
one whose turn it is not), `asking` writes requests, the other files are the loads. scripts/bench-peers is the door.
"""
