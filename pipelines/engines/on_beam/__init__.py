"""Jobs as transforms of Apache Beam."""
