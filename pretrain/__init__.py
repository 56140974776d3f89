"""What a run learns: SimCLR, MICLe and the encoder they leave behind."""
