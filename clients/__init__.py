"""The clients' side: local data, local training, local defenses, and the Flower ClientApp around them."""
