"""How good a trained model is: measures, and sheets of samples to look at."""
