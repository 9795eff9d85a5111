"""The techniques as they were published, on diffusers' components: what pare is held against.

Free of pare's code: UNets and schedulers are diffusers' own, handed in.  The tests run these
loops on tiny models of random weights, and `pare verify` on a model's own.
"""
