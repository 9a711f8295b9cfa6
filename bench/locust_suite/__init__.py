"""What bench/locustfile.py is made of."""
