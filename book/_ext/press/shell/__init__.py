"""Each page finished as it is written; what the site can spare."""
