"""What online continual learning needs beside the gates: memories, and the methods compared."""
