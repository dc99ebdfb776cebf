"""What a trace follows in place of functions of torch and torchvision that decide by sizes or are kept whole."""
