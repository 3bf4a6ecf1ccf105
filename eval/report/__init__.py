"""What people look at: charts, sheets of pictures, and the one page that holds them all."""
