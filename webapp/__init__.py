"""The web application: stores, validates, authorises and shows. It never loads torch."""
