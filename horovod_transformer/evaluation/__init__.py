"""How good a trained model is: held-out books, and the texts it writes."""
