"""What a Jetson tells of itself below /proc, /sys and /etc: the board, power, memory, throttling.

None of it was run on a board; docs/devices.md says what it was tried on.
"""
