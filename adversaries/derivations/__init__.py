"""How an adversary makes single updates out of what it sees under secure aggregation: by name, `derive = ...`.

name           what it uses
collusion      n - 1 clients that work together with the server and subtract what they sent themselves
differencing   sums of many rounds in which not all the same clients took part
suppression    a model for each client: all but one get one with which their gradients vanish
masked         the masked vector of a link, taken for the update itself; to show that it says nothing
prying         a server that asks for both shares of a client's secrets, or feigns dropouts; to show that it is refused
"""
