"""What is known of machines: one table of chips and cards, and the backend that a program is
for."""
