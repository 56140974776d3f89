"""What is checked in a cluster's files, a kind of file each, without a network and without starting anything."""
