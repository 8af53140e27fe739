"""The flows as a service: schedules, deployments, the server, and what a killed service left behind.

Imports the flows and runtime. Start with `serve`.
"""
