"""What makes training converge to low rank: mask laws and the penalties they induce, weight decay, proximal steps."""
