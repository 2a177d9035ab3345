"""How messages get from one stage to the next: a line of small frames, and carriers of the bytes."""
