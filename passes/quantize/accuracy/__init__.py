"""What brings back the accuracy that quantization costs, and says where it is lost."""
