"""The bridge from the database to the job: claims runs, supervises their processes, records events.

The only place that catches everything. It never imports torch; the job's process does.
"""
